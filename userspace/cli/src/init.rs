// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam init`: a configuration of the daemon, from what the toolstack says of the domains
//! that run.

use crate::client::ClientError;
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Name of the port of an agent in its host VM.
const PORT: &str = "org.vmbeam.agent.0";
const BEGIN: &str =
    "# Written by `vmbeam init`. /usr/share/doc/vmbeam/examples/vmbeamd.toml has all \
                     that can be set.\n\n";

/// What `vmbeam init` is given.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Host VMs; all running domains that have a port for an agent if none is named
    #[arg(value_name = "HOST_VM")]
    names: Vec<String>,
    /// The file to write, which must not exist yet; - for standard output
    #[arg(long, value_name = "FILE", default_value = "/etc/vmbeam/vmbeamd.toml")]
    file: PathBuf,
    /// Prints all domains with their configuration, as JSON
    #[arg(
        long,
        value_name = "COMMAND",
        default_value = "xl list -l",
        value_delimiter = ' ',
        hide = true
    )]
    list_command: Vec<String>,
}

/// A domain, as `xl list -l` prints it; of much more that is there.
#[derive(Debug, Deserialize)]
struct Domain {
    config: Config,
}

#[derive(Debug, Deserialize)]
struct Config {
    c_info: CreateInfo,
    #[serde(default)]
    b_info: BuildInfo,
}

#[derive(Debug, Deserialize)]
struct CreateInfo {
    #[serde(default)]
    name: String,
}

/// `device_model_args` and `device_model_args_hvm`.
#[derive(Debug, Default, Deserialize)]
struct BuildInfo {
    #[serde(default)]
    extra: Vec<String>,
    #[serde(default)]
    extra_hvm: Vec<String>,
}

impl Domain {
    /// The socket of its agent's port, if it has one.
    fn socket(&self) -> Option<PathBuf> {
        let arguments = || {
            self.config
                .b_info
                .extra
                .iter()
                .chain(&self.config.b_info.extra_hvm)
        };
        let named = format!("name={PORT}");
        let chardev = arguments()
            .filter(|a| a.starts_with("virtserialport,") && a.split(',').any(|o| o == named))
            .find_map(|a| option(a, "chardev"))?;
        arguments()
            .filter(|a| a.starts_with("socket,") && option(a, "id") == Some(chardev))
            .find_map(|a| option(a, "path"))
            .map(|path| lasting(Path::new(path)))
    }
}

/// The link to a socket, beside it, that `vmbeam replace` made: whoever replaces the host VM next
/// has a socket of another name.
fn lasting(socket: &Path) -> PathBuf {
    let beside = socket.parent().and_then(|dir| dir.read_dir().ok());
    beside
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| fs::read_link(path).is_ok_and(|to| path.with_file_name(to) == socket))
        .unwrap_or_else(|| socket.to_owned())
}

/// An option of one of QEMU's arguments.
fn option<'a>(argument: &'a str, name: &str) -> Option<&'a str> {
    argument
        .split(',')
        .filter_map(|o| o.split_once('='))
        .find_map(|(n, value)| (n == name).then_some(value))
}

/// The file.
#[derive(Debug, Serialize)]
struct File<'a> {
    host_vm: Vec<HostVm<'a>>,
    pair: Vec<Pair<'a>>,
}

#[derive(Debug, Serialize)]
struct HostVm<'a> {
    name: &'a str,
    socket: PathBuf,
}

#[derive(Debug, Serialize)]
struct Pair<'a> {
    between: [&'a str; 2],
}

/// What to put into the configuration of a host VM.
fn port(name: &str) -> String {
    format!(
        "give it one, in its xl configuration:\n\n  \
         device_model_args = [\n    \
         \"-device\", \"virtio-serial-pci\",\n    \
         \"-chardev\", \"socket,id=agent,path=/run/vmbeam/agents/{name}.sock,server=on,wait=off\",\n    \
         \"-device\", \"virtserialport,chardev=agent,name={PORT}\" ]\n\n\
         and start it anew"
    )
}

/// The text of the file: these host VMs, or all that can be one, and every pair of them.
fn configuration(domains: &[Domain], names: &[String]) -> Result<String, String> {
    let mut host_vms = Vec::new();
    for domain in domains {
        let name = domain.config.c_info.name.as_str();
        let wanted = names.iter().any(|n| n == name);
        match domain.socket() {
            Some(socket) if wanted || names.is_empty() => host_vms.push(HostVm { name, socket }),
            None if wanted => {
                return Err(format!("{name} has no port for an agent; {}", port(name)))
            }
            _ => {}
        }
    }
    if let Some(name) = names
        .iter()
        .find(|n| host_vms.iter().all(|vm| vm.name != **n))
    {
        return Err(format!(
            "no domain named {name} runs; `xl list` shows which there are"
        ));
    }
    if host_vms.len() < 2 {
        let found = host_vms.first().map_or("none", |vm| vm.name);
        return Err(format!(
            "guests move between two host VMs, and domains with a port for an agent are: {found}; \
             start the host VMs first. One that has no port: {}",
            port("NAME")
        ));
    }
    let pairs = host_vms.iter().enumerate();
    let pair = pairs
        .flat_map(|(i, a)| host_vms[i + 1..].iter().map(move |b| [a.name, b.name]))
        .map(|between| Pair { between })
        .collect();
    let text = toml::to_string(&File {
        host_vm: host_vms,
        pair,
    })
    .map_err(|e| e.to_string())?;
    Ok(format!("{BEGIN}{text}"))
}

/// The domains that run.
fn domains(command: &[String]) -> Result<Vec<Domain>, String> {
    let [program, arguments @ ..] = command else {
        return Err("the command is empty".to_owned());
    };
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let text = crate::base::run(program, &arguments).ok_or(format!(
        "`{}` failed; run this as root in the host's dom0",
        command.join(" ")
    ))?;
    serde_json::from_str(&text).map_err(|e| format!("`{}` printed: {e}", command.join(" ")))
}

/// Nothing that is there is written over.
fn write(file: &Path, text: &str) -> Result<(), String> {
    if file == Path::new("-") {
        println!("{}", text.trim_end());
        return Ok(());
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(file)
        .and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()))
        .map_err(|e| format!("{}: {e}; --file - prints it instead", file.display()))?;
    println!(
        "{} is written; `systemctl restart vmbeamd`, then `vmbeam check`",
        file.display()
    );
    Ok(())
}

/// Write it.
pub(crate) fn run(args: &Args) -> Result<ExitCode, ClientError> {
    domains(&args.list_command)
        .and_then(|domains| configuration(&domains, &args.names))
        .and_then(|text| write(&args.file, &text))
        .map_err(ClientError::Refused)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn domain(name: &str, path: Option<&str>) -> Domain {
        let arguments = path.map_or(vec![], |path| {
            vec![
                "-chardev".to_owned(),
                "socket,id=x,path=/other,server=on".to_owned(),
                "-chardev".to_owned(),
                format!("socket,id=agent,path={path},server=on,wait=off"),
                "-device".to_owned(),
                "virtserialport,chardev=x,name=org.vmbeam.other".to_owned(),
                "-device".to_owned(),
                format!("virtserialport,chardev=agent,name={PORT}"),
            ]
        });
        let json = serde_json::json!({ "domid": 1, "config": {
            "c_info": { "type": "hvm", "name": name },
            "b_info": { "extra": arguments, "vcpus": 4 },
        }});
        serde_json::from_value(json).unwrap()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn the_daemon_takes_what_is_written() {
        let domains = [
            domain("Domain-0", None),
            domain("A", Some("/run/a.sock")),
            domain("B \"2\"", Some("/run/b.sock")),
            domain("C", Some("/run/c.sock")),
            domain("db", None),
        ];
        let text = configuration(&domains, &[]).unwrap();
        let config = vmbeamd::config::Config::parse(Path::new("x"), &text).unwrap();
        let taken: Vec<_> = config.host_vms.iter().map(|vm| vm.name.as_str()).collect();
        assert_eq!(taken, ["A", "B \"2\"", "C"]);
        assert_eq!(config.host_vms[1].socket, Path::new("/run/b.sock"));
        assert_eq!(config.pairs.len(), 3);

        let text = configuration(&domains, &names(&["C", "A"])).unwrap();
        let config = vmbeamd::config::Config::parse(Path::new("x"), &text).unwrap();
        assert_eq!((config.host_vms.len(), config.pairs.len()), (2, 1));
    }

    #[test]
    fn the_port_of_one_that_took_the_place_of_another_is_the_link() {
        let dir = tempfile::tempdir().unwrap();
        let [socket, link] = ["A.7.sock", "A.sock"].map(|name| dir.path().join(name));
        assert_eq!(domain("A", socket.to_str()).socket().unwrap(), socket);
        std::os::unix::fs::symlink("A.7.sock", &link).unwrap();
        assert_eq!(domain("A", socket.to_str()).socket().unwrap(), link);
    }

    #[test]
    fn what_is_missing_is_said() {
        let domains = [domain("A", Some("/run/a.sock")), domain("B", None)];
        let refused = |n: &[&str]| configuration(&domains, &names(n)).unwrap_err();
        assert!(refused(&[]).contains("with a port for an agent are: A;"));
        assert!(refused(&["A", "B"]).contains("B has no port for an agent; give it one"));
        assert!(refused(&["A", "Z"]).contains("no domain named Z runs"));
        assert!(configuration(&[], &[])
            .unwrap_err()
            .contains("agent are: none;"));
    }

    #[test]
    fn a_file_that_is_there_stays() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = write(file.path(), "x").unwrap_err();
        assert!(error.contains("File exists"), "{error}");
        assert_eq!(std::fs::read(file.path()).unwrap(), b"");
        let error = domains(&names(&["/bin/false"])).unwrap_err();
        assert!(error.contains("`/bin/false` failed"), "{error}");
        let error = domains(&names(&["/bin/echo", "{"])).unwrap_err();
        assert!(error.contains("`/bin/echo {` printed"), "{error}");
    }
}
