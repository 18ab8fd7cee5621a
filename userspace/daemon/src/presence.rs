// SPDX-License-Identifier: GPL-2.0-only

//! Whether the domain still runs that a host VM was: its guests are gone with it, and so must it
//! be certainly. An error is no answer: nobody knows.

use crate::config::Domid;
use crate::host_vm::{HostVm, ASK_XL};
use crate::journal::Place;
use std::process::Command;
use tracing::warn;
use vmbeam_xen::domains::Domains;

impl HostVm {
    /// Whether it still runs that it was when its domid was this, whatever its name is by now.
    pub(crate) fn still_runs(&self, domid: u32) -> Result<bool, String> {
        self.runs(domid, None)
    }

    /// Whether that is so of the one that was noted.
    pub(crate) fn is_still(&self, place: &Place) -> Result<bool, String> {
        let &Place {
            host_domid: domid,
            host_uuid,
            host_id,
            ..
        } = place;
        let runs = self.runs(domid, host_id)?;
        match host_uuid {
            // If the domid is fixed it was the hypervisor that compared the two, or nobody.
            Some(uuid) if runs && !(self.is_fixed() && host_id.is_some()) => {
                Ok(self.source.uuid(domid)? == uuid)
            }
            _ => Ok(runs),
        }
    }

    fn is_fixed(&self) -> bool {
        matches!(self.config.domid, Domid::Fixed(_))
    }

    /// Whether there is a domain with this domid and, if that is known, this id of the
    /// hypervisor's. Of dying ones only the toolstack says that they do not run any more; it is
    /// not asked for a host VM whose domid is given, of which that may be a wrong one by now.
    fn runs(&self, domid: u32, id: Option<u64>) -> Result<bool, String> {
        let name = &self.config.name;
        match (&self.config.domid, self.driver.has(domid, id)) {
            (_, Ok(false)) => Ok(false),
            (Domid::Fixed(_), Ok(true)) if id.is_some() => Ok(true),
            (Domid::Fixed(_), Err(e)) if id.is_some() => Err(format!(
                "it is not known whether host VM {name}, domain {domid}, still runs: {e}"
            )),
            (Domid::Fixed(fixed), _) if *fixed == domid => Ok(true),
            (Domid::Fixed(fixed), _) => Err(format!(
                "it is not known whether host VM {name}, domain {domid}, still runs: vmbeamd's configuration says that it is domain {fixed}; put `domid = {domid}` back there until this is settled, or see `vmbeam forget --job`"
            )),
            (Domid::Command(_), known) => {
                if let (Err(e), Some(_)) = (known, id) {
                    warn!("the hypervisor does not say whether host VM {name}, domain {domid}, is the one that it was: {e}");
                }
                let shown = self.config.list.join(" ");
                self.domains()
                    .map(|domains| domains.has(domid))
                    .map_err(|e| {
                        format!("it is not known whether host VM {name}, domain {domid}, still runs: `{shown}`: {e}")
                    })
            }
        }
    }

    fn domains(&self) -> Result<Domains, String> {
        let (program, arguments) = self.config.list.split_first().ok_or("no list_command")?;
        Domains::list(Command::new(program).args(arguments), ASK_XL)
    }

    /// Whether it certainly does not run. Of one whose domid is given nobody knows.
    pub(crate) fn is_down(&self) -> bool {
        !self.is_fixed() && self.domains().and_then(|d| d.named(&self.config.name)) == Ok(None)
    }
}
