// SPDX-License-Identifier: GPL-2.0-only

//! Which host VM this is.

use std::path::Path;
use vmbeam_agent_protocol::Uuid;

/// Where Linux shows the UUID in the firmware's tables (SMBIOS, type 1), to root only. In a
/// host VM it is the one that the host's toolstack gave the domain.
const SHOWN: &str = "/sys/class/dmi/id/product_uuid";

/// The UUID of this host VM.
pub(crate) fn host_vm() -> Result<Uuid, String> {
    read(Path::new(SHOWN))
}

fn read(path: &Path) -> Result<Uuid, String> {
    let at = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| {
        format!("cannot read the host VM's UUID from {at}: {e}; run vmbeam-agent as root, with sysfs, on a kernel with CONFIG_DMIID")
    })?;
    Uuid::try_parse(text.trim()).map_err(|e| format!("no UUID in {at}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_shows() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("product_uuid");
        let e = read(&file).unwrap_err();
        assert!(e.contains("run vmbeam-agent as root"), "{e}");
        std::fs::write(&file, "0fa10d2e-5f4c-4fd0-a3a5-1d7e8c3f0b11\n").unwrap();
        let expected = 0x0fa1_0d2e_5f4c_4fd0_a3a5_1d7e_8c3f_0b11;
        assert_eq!(read(&file), Ok(Uuid::from_u128(expected)));
        std::fs::write(&file, "Not Settable\n").unwrap();
        let e = read(&file).unwrap_err();
        assert!(e.starts_with("no UUID in "), "{e}");
    }
}
