// SPDX-License-Identifier: GPL-2.0-only

//! Host VMs with files in directories of their own, and moves between them.

use super::*;

/// The name in a file's first line.
fn first_line(path: &Path) -> io::Result<Option<String>> {
    let text = fs::read_to_string(path)?;
    let name = text.lines().next().and_then(|l| l.strip_prefix("name="));
    Ok(name.map(str::to_owned))
}

struct Vm {
    dir: tempfile::TempDir,
    files: Files,
}

fn vm(files: &[(&str, &str)]) -> Vm {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("xen");
    fs::create_dir_all(config.join("auto")).unwrap();
    for (name, text) in files {
        match text.strip_prefix("-> ") {
            Some(to) => symlink(to, config.join(name)).unwrap(),
            None => fs::write(config.join(name), text).unwrap(),
        }
    }
    let saved = dir.path().join("save");
    fs::create_dir_all(&saved).unwrap();
    let files = Files {
        auto: Some(config.join("auto")),
        saved: Some(saved),
        config,
        name_of: first_line,
    };
    Vm { dir, files }
}

impl Vm {
    /// All that is there.
    fn all(&self) -> Vec<String> {
        let config = &self.files.config;
        let mut all = Vec::new();
        for dir in ["", "auto/"] {
            for entry in fs::read_dir(config.join(dir)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let name = format!("{dir}{name}");
                let path = config.join(&name);
                match fs::read_link(&path) {
                    Ok(to) => all.push(format!("{name} -> {}", to.display())),
                    Err(_) if path.is_file() => all.push(name),
                    Err(_) => {}
                }
            }
        }
        all.sort();
        all
    }
}

#[track_caller]
fn moves(from: &Vm, to: &Vm) {
    let definition = from.files.definition("g").unwrap();
    // Each of these may be repeated, whoever died in between.
    for _ in 0..2 {
        to.files.define("g", &definition).unwrap();
    }
    for _ in 0..2 {
        from.files.undefine("g").unwrap();
    }
    assert!(from.files.definition("g").unwrap().is_empty());
    assert_eq!(to.files.definition("g").unwrap(), definition);
}

#[test]
fn what_starts_a_guest_goes_with_it_and_comes_back() {
    let others = [("xl.conf", "# none"), ("h.cfg", "name=h\n")];
    let mine = [("g.cfg", "name=g\n1"), ("auto/g", "-> ../g.cfg")];
    let a = vm(&[&others[..], &mine].concat());
    let b = vm(&others);
    let before = a.all();
    moves(&a, &b);
    assert_eq!(a.all(), ["g.cfg.moved", "h.cfg", "xl.conf"]);
    assert_eq!(b.all(), before);
    assert_eq!(a.files.autostart().unwrap(), Vec::<String>::new());
    assert_eq!(b.files.autostart().unwrap(), ["g"]);
    moves(&b, &a);
    assert_eq!(a.all(), before);
    assert_eq!(b.all(), ["g.cfg.moved", "h.cfg", "xl.conf"]);
}

#[test]
fn whatever_an_administrator_calls_it() {
    // Not in the directory that a guest can be created from: its text travels.
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("any");
    fs::write(&file, "name=g\n").unwrap();
    let link = format!("-> {}", file.display());
    let a = vm(&[("auto/10-g", &link)]);
    let b = vm(&[]);
    moves(&a, &b);
    assert_eq!((a.all(), b.all()), (vec![], vec!["auto/10-g".to_owned()]));
    assert!(file.exists());
    // A file of its own, and more of them than one.
    let a = vm(&[("auto/g", "name=g\n2"), ("auto/g2", "name=g\n3")]);
    let b = vm(&[]);
    moves(&a, &b);
    assert_eq!(a.all(), ["g.moved", "g2.moved"]);
    assert_eq!(b.all(), ["auto/g"]);
    // Without anything that starts it, and by the name of the file or the only one.
    for name in ["g", "g.cfg", "web.cfg"] {
        let a = vm(&[(name, "name=g\n"), ("g.cfg.replaced", "name=g\n")]);
        let b = vm(&[]);
        moves(&a, &b);
        assert_eq!(b.all(), [name]);
    }
    // A name that leads somewhere else leads nowhere.
    let a = vm(&[("web.cfg", "name=../xen/web\n")]);
    assert!(a.files.definition("../xen/web").unwrap().config.is_some());
    a.files.undefine("../xen/web").unwrap();
    assert_eq!(a.all(), ["web.cfg.moved"]);
    // Which of these it is nobody knows.
    let a = vm(&[("old.cfg", "name=g\n"), ("new.cfg", "name=g\n")]);
    assert!(a.files.definition("g").unwrap().is_empty());
    a.files.undefine("g").unwrap();
    assert_eq!(a.all(), ["new.cfg", "old.cfg"]);
    // There need be no directories.
    let none = vm(&[]);
    fs::remove_dir_all(&none.files.config).unwrap();
    assert!(none.files.definition("g").unwrap().is_empty());
    none.files.undefine("g").unwrap();
    drop(none.dir);
}

#[test]
fn what_was_there_is_not_lost() {
    let a_again = || vm(&[("g.cfg", "name=g\nnew"), ("auto/g", "-> ../g.cfg")]);
    let a = a_again();
    let old = [("g.cfg", "name=g\nold"), ("auto/first", "-> ../g.cfg")];
    let b = vm(&old);
    moves(&a, &b);
    assert_eq!(b.all(), ["auto/g -> ../g.cfg", "g.cfg", "g.cfg.replaced"]);
    let text = |name: &str| fs::read_to_string(b.files.config.join(name)).unwrap();
    assert_eq!(text("g.cfg"), "name=g\nnew");
    assert_eq!(text("g.cfg.replaced"), "name=g\nold");
    // Nor is what was there before that, and nothing of two files of one name.
    let old = [
        ("g.cfg", "name=g\nold"),
        ("g.cfg.replaced", "oldest"),
        ("g.cfg.moved", "edited"),
        ("auto/g.cfg", "name=g\nolder"),
    ];
    let b = vm(&old);
    moves(&a_again(), &b);
    let all = [
        "auto/g -> ../g.cfg",
        "g.cfg",
        "g.cfg.moved",
        "g.cfg.replaced",
        "g.cfg.replaced.1",
        "g.cfg.replaced.2",
    ];
    assert_eq!(b.all(), all);
    let text = |name: &str| fs::read_to_string(b.files.config.join(name)).unwrap();
    assert_eq!(text("g.cfg.replaced.1"), "name=g\nold");
    assert_eq!(text("g.cfg.replaced.2"), "name=g\nolder");
    // What is not the guest's stays, and nothing is written.
    for (there, came, found) in [
        (
            "g.cfg",
            "name=g\n",
            "g.cfg is there already, and makes guest h",
        ),
        ("h.cfg", "name=h\n", ""),
    ] {
        let b = vm(&[("g.cfg", "name=h\n")]);
        let name = there.to_owned();
        let text = came.into();
        let definition = Definition {
            config: Some(File { name, text }),
            autostart: None,
        };
        let before = b.files.in_the_way("g", &definition).unwrap().concat();
        assert!(before.ends_with(found) && before.is_empty() == found.is_empty());
        let e = b.files.define("g", &definition).unwrap_err();
        assert!(e.message.contains("not make guest g"), "{e}");
        assert_eq!(b.all(), ["g.cfg"]);
    }
}

#[test]
fn what_has_a_name_that_is_needed_is_found_before() {
    let asked = |a: &Vm, b: &Vm| {
        let definition = a.files.definition("g").unwrap();
        let found = b.files.in_the_way("g", &definition).unwrap();
        // It is what would be found otherwise.
        assert_eq!(
            found.is_empty(),
            b.files.define("g", &definition).is_ok(),
            "{found:?}"
        );
        let name = |f: &String| f.rsplit('/').next().unwrap().to_owned();
        found.iter().map(name).collect::<Vec<_>>()
    };
    let linked = vm(&[("g.cfg", "name=g\n"), ("auto/g", "-> ../g.cfg")]);
    let file = vm(&[("auto/g", "name=g\n")]);
    let mine = [("g.cfg", "name=g\nold"), ("auto/g", "-> ../g.cfg")];
    let others = [("h.cfg", "name=h\n"), ("auto/g", "-> ../h.cfg")];
    let strange = [("g.cfg", "# none"), ("auto/g", "name=a\u{202e}b\n")];
    let (config, entry) = (
        "g.cfg is there already, and makes",
        "g is there already, and makes",
    );
    for (a, there, found) in [
        (&linked, &[][..], vec![]),
        (&linked, &mine, vec![]),
        (&file, &mine, vec![]),
        // One that leads nowhere.
        (&linked, &[("auto/g", "-> ../gone")], vec![]),
        (&linked, &others, vec![format!("{entry} guest h")]),
        (&file, &others, vec![format!("{entry} guest h")]),
        (
            &linked,
            &strange,
            vec![format!("{config} no guest"), format!("{entry} guest ab")],
        ),
    ] {
        assert_eq!(asked(a, &vm(there)), found, "{there:?}");
    }
    // What is started at boot is kept beside the others where nothing is started.
    let mut b = vm(&[("g", "name=h\n")]);
    b.files.auto = None;
    assert_eq!(asked(&file, &b), [format!("{entry} guest h")]);
    assert!(asked(&linked, &b).is_empty());
}

/// It would run twice.
#[test]
fn what_was_saved_is_not_restored_where_the_guest_is_not() {
    let a = vm(&[("g.cfg", "name=g\n")]);
    let saved = a.files.saved.clone().unwrap();
    fs::write(saved.join("g"), "Xen saved domain").unwrap();
    fs::write(saved.join("h"), "Xen saved domain").unwrap();
    fs::create_dir(saved.join("dir")).unwrap();
    assert_eq!(a.files.autostart().unwrap(), ["g", "h"]);
    for _ in 0..2 {
        a.files.undefine("g").unwrap();
        assert_eq!(a.files.autostart().unwrap(), ["h"]);
    }
    assert!(saved.join(".g.moved").exists());
    a.files.undefine("../save/h").unwrap();
    assert_eq!(a.files.autostart().unwrap(), ["h"]);
    let mut never = a.files.clone();
    never.saved = None;
    assert_eq!(never.autostart().unwrap(), [""; 0]);
}

/// The guest is known by its name without what cannot be seen.
#[test]
fn a_name_that_is_not_what_it_looks_like() {
    for name in ["g\u{202e}", "\tg", "g\u{200b}"] {
        let text = format!("name={name}\n");
        let a = vm(&[("web.cfg", &text), ("auto/1", "-> ../web.cfg")]);
        let b = vm(&[]);
        let before = a.all();
        moves(&a, &b);
        assert_eq!(b.all(), before);
        moves(&b, &a);
        // Nothing leads to it.
        let a = vm(&[("web.cfg", &text)]);
        moves(&a, &b);
        assert_eq!(a.all(), ["web.cfg.moved"]);
        let saved = a.files.saved.clone().unwrap();
        fs::write(saved.join(name), "Xen saved domain").unwrap();
        assert_eq!(a.files.autostart().unwrap(), ["g"]);
        a.files.undefine("g").unwrap();
        assert_eq!(a.files.autostart().unwrap(), [""; 0]);
        assert!(saved.join(format!(".{name}.moved")).exists());
    }
    let a = vm(&[("auto/nameless", "name=\u{200b}\n")]);
    let e = a.files.autostart().unwrap_err();
    assert!(e.message.contains("nameless: the guest's name"), "{e}");
}

/// The daemon would take no such answer, nor ask for anything more.
#[test]
fn a_file_with_a_name_that_cannot_travel_is_named() {
    for (file, entry) in [
        (".g.cfg", "g"),
        ("g\u{202e}.cfg", "g"),
        ("g.cfg", "g\u{200b}"),
        ("g.cfg", "1\n2"),
    ] {
        let (link, entry) = (format!("-> ../{file}"), format!("auto/{entry}"));
        let a = vm(&[(file, "name=g\n"), (&entry, &link)]);
        let e = a.files.definition("g").unwrap_err();
        assert!(e.message.contains("cannot move with its guest"), "{e}");
        assert_eq!(a.files.autostart().unwrap(), ["g"]);
    }
}

#[test]
fn a_host_vm_that_starts_nothing_keeps_what_comes() {
    let a = vm(&[("auto/g", "name=g\n")]);
    let mut b = vm(&[]);
    b.files.auto = None;
    let definition = a.files.definition("g").unwrap();
    b.files.define("g", &definition).unwrap();
    assert_eq!(b.all(), ["g"]);
}
