//! Installing, upgrading and removing the package.

use std::{fs, process::Command};

use anyhow::Result;
use harness::check;

use crate::{root::Root, run, said};

/// A configuration, as far as the scripts look at one.
const CONFIGURED: &str = "[interfaces]\npls = \"eth0\"\n";

/// A Debian on which systemd seems to run: what it is asked is noted in `/asked`. The service is in
/// the state that `/state` names. A start fails if there is `/start-fails`, is not made if there is
/// `/not-allowed`, and begins another run otherwise. Programs are attached.
fn running() -> Root {
    let root = root();
    check(fs::create_dir_all(root.path("run/systemd/system")).map_err(Into::into));
    let systemctl = r#"
        echo "systemctl $*" >>/asked
        case $* in
            *is-active*) cat /state ;;
            *InvocationID*) cat /run-id ;;
        esac"#;
    let invoke = r#"
        echo "invoke $*" >>/asked
        [ ! -e /not-allowed ] || exit 0
        echo x >>/run-id
        [ ! -e /start-fails ]"#;
    check(root.replace("usr/bin/systemctl", systemctl));
    check(root.replace("usr/bin/deb-systemd-invoke", invoke));
    check(root.replace("usr/bin/journalctl", "echo the last words"));
    for (file, content) in [("state", "inactive\n"), ("run-id", "x\n")] {
        check(fs::write(root.path(file), content).map_err(Into::into));
    }
    check(fs::create_dir_all(root.path(LINKS)).map_err(Into::into));
    check(fs::write(root.path(LINKS).join("native-eth0"), "").map_err(Into::into));
    root
}

/// The directory of attachments, which is no BPF file system here.
const LINKS: &str = "sys/fs/bpf/pls-router/v1/links";

fn root() -> Root {
    if harness::no_root("").is_some() {
        harness::skip("to install in a directory needs root");
    }
    check(Root::new())
}

/// Returns the requests to systemd about the service since the last call.
fn asked(root: &Root) -> Vec<String> {
    let asked = fs::read_to_string(root.path("asked")).unwrap_or_default();
    let _ = fs::remove_file(root.path("asked"));
    asked.lines().filter_map(|line| line.strip_prefix("invoke ")).map(str::to_owned).collect()
}

/// Installs, and returns what was said.
fn install(root: &Root, version: &str) -> String {
    let output = check(root.install(version));
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn a_purge_leaves_nothing() -> Result<()> {
    let root = root();
    install(&root, "1.0");
    let enabled = root.path("etc/systemd/system/multi-user.target.wants/pls-router.service");
    assert!(enabled.symlink_metadata().is_ok(), "it does not start at boot");
    let by_socket = root.path("etc/systemd/system/pls-router.service.wants/pls-router.socket");
    assert!(by_socket.symlink_metadata().is_err(), "nobody has asked for the socket");
    let made = root.inside(&["systemctl", "enable", "pls-router.socket"])?;
    assert!(by_socket.symlink_metadata().is_ok(), "{}", said(&made));
    assert!(said(&root.inside(&["getent", "group", "pls-router"])?).starts_with("pls-router:"));
    fs::write(root.path("etc/pls-router/config.toml"), CONFIGURED)?;
    fs::write(root.path("etc/pls-router/config.toml.previous"), "")?;
    fs::create_dir_all(root.path("var/lib/pls-router"))?;

    let removed = root.inside(&["dpkg", "--remove", "pls-router"])?;
    assert!(removed.status.success(), "{}", said(&removed));
    assert_eq!(fs::read_to_string(root.path("etc/pls-router/config.toml"))?, CONFIGURED);
    assert!(!root.path("usr/bin/pls-router").exists());

    let purged = root.inside(&["dpkg", "--purge", "pls-router"])?;
    assert!(purged.status.success(), "{}", said(&purged));
    let mut find = Command::new("find");
    find.arg(root.path("")).args(["-name", "*pls-router*", "-not", "-path", "*/proc/*"]);
    assert_eq!(run(&mut find)?, "");
    assert!(!root.inside(&["getent", "group", "pls-router"])?.status.success(), "the group is left");
    Ok(())
}

#[test]
fn nothing_starts_before_it_is_configured() {
    let root = running();
    let said = install(&root, "1.0");
    assert!(said.contains("not configured yet") && said.contains("pls-router check"), "{said}");
    assert_eq!(asked(&root), Vec::<String>::new());
}

#[test]
fn what_is_configured_before_starts() -> Result<()> {
    let root = running();
    fs::create_dir(root.path("etc/pls-router"))?;
    fs::write(root.path("etc/pls-router/config.toml"), CONFIGURED)?;
    // As cloud-init does: dpkg must not ask about a file that is there already.
    fs::write(root.path("etc/dpkg/dpkg.cfg.d/keep"), "force-confold\n")?;
    install(&root, "1.0");
    assert_eq!(asked(&root), ["start pls-router.service"]);
    assert_eq!(fs::read_to_string(root.path("etc/pls-router/config.toml"))?, CONFIGURED);
    Ok(())
}

#[test]
fn an_upgrade_restarts_and_keeps_the_configuration() -> Result<()> {
    let root = running();
    install(&root, "1.0");
    fs::write(root.path("etc/pls-router/config.toml"), CONFIGURED)?;
    fs::write(root.path("state"), "active\n")?;
    install(&root, "1.1");
    assert_eq!(asked(&root), ["restart pls-router.service"]);
    assert_eq!(fs::read_to_string(root.path("etc/pls-router/config.toml"))?, CONFIGURED);
    // What somebody has stopped is left so.
    fs::write(root.path("state"), "inactive\n")?;
    install(&root, "1.2");
    assert_eq!(asked(&root), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_version_that_cannot_run_is_not_started() -> Result<()> {
    let root = running();
    install(&root, "1.0");
    fs::write(root.path("state"), "active\n")?;
    fs::write(root.path("stand-in-fails"), "")?;
    let said = install(&root, "1.1");
    assert!(said.contains("no interface eth0") && said.contains("version 1.0 goes on running"), "{said}");
    assert_eq!(asked(&root), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_failed_start_is_said_and_fails_no_upgrade() -> Result<()> {
    let root = running();
    install(&root, "1.0");
    fs::write(root.path("state"), "active\n")?;
    fs::write(root.path("start-fails"), "")?;
    let said = install(&root, "1.1");
    let expected = ["the last words", "DOES NOT START", "version 1.0 go on forwarding"];
    assert!(expected.iter().all(|words| said.contains(words)), "{said}");
    Ok(())
}

/// dpkg tells the scripts of a package which version was installed before, and not which one runs.
#[test]
fn the_version_that_forwards_is_named_however_many_have_failed_since() -> Result<()> {
    let root = running();
    install(&root, "1.0");
    fs::write(root.path("state"), "active\n")?;
    fs::write(root.path("stand-in-fails"), "")?;
    for (version, state) in [("1.1", "active\n"), ("1.2", "reloading\n")] {
        fs::write(root.path("state"), state)?;
        let said = install(&root, version);
        assert!(said.contains("the daemon of version 1.0 goes on running"), "{said}");
    }
    fs::remove_file(root.path("stand-in-fails"))?;
    fs::write(root.path("start-fails"), "")?;
    let said = install(&root, "1.3");
    assert!(said.contains("install version 1.0 again"), "{said}");
    fs::write(root.path("state"), "activating\n")?;
    let said = install(&root, "1.4");
    assert!(said.contains("install version 1.0 again"), "{said}");
    // No daemon goes on then, whether the next one may start or not.
    fs::write(root.path("stand-in-fails"), "")?;
    let said = install(&root, "1.5");
    assert!(said.contains("its check fails") && said.contains("install version 1.0 again"), "{said}");
    assert!(!said.contains("goes on running"), "{said}");
    fs::remove_file(root.path("stand-in-fails"))?;

    // One that starts is the one to go back to from then on.
    fs::remove_file(root.path("start-fails"))?;
    install(&root, "1.6");
    fs::write(root.path("state"), "active\n")?;
    fs::write(root.path("start-fails"), "")?;
    let said = install(&root, "1.7");
    assert!(said.contains("install version 1.6 again"), "{said}");

    // So is one that starts later: the unit removes the note when a daemon is ready.
    let unit = fs::read_to_string(root.path("usr/lib/systemd/system/pls-router.service"))?;
    let started = unit.lines().find_map(|line| line.strip_prefix("ExecStartPost=-/bin/"));
    let cleared = root.inside(&started.unwrap_or_default().split(' ').collect::<Vec<_>>())?;
    assert!(cleared.status.success(), "{started:?}: {}", crate::said(&cleared));
    let said = install(&root, "1.8");
    assert!(said.contains("install version 1.7 again"), "{said}");
    Ok(())
}

#[test]
fn nothing_is_said_to_forward_where_nothing_is_attached() -> Result<()> {
    let root = running();
    install(&root, "1.0");
    fs::remove_file(root.path(LINKS).join("native-eth0"))?;
    fs::write(root.path("state"), "activating\n")?;
    for (obstacle, version) in [("start-fails", "1.1"), ("stand-in-fails", "1.2")] {
        fs::write(root.path(obstacle), "")?;
        let said = install(&root, version);
        assert!(said.contains("nothing is forwarded") && !said.contains("go on forwarding"), "{said}");
    }
    Ok(())
}

#[test]
fn a_restart_that_is_not_allowed_is_told() -> Result<()> {
    let root = running();
    install(&root, "1.0");
    fs::write(root.path("state"), "active\n")?;
    fs::write(root.path("not-allowed"), "")?;
    let said = install(&root, "1.1");
    assert!(said.contains("installed, but not restarted"), "{said}");
    // It has never run.
    fs::remove_file(root.path("not-allowed"))?;
    fs::write(root.path("start-fails"), "")?;
    let said = install(&root, "1.2");
    assert!(said.contains("install version 1.0 again"), "{said}");
    Ok(())
}

#[test]
fn a_removal_stops_and_detaches_and_an_upgrade_does_not() -> Result<()> {
    let root = running();
    install(&root, "1.0");
    // In the place of the program, from the next step on.
    root.replace("usr/bin/pls-router", r#"echo "router $*" >>/asked"#)?;
    fs::write(root.path("state"), "active\n")?;
    install(&root, "1.1");
    let during = fs::read_to_string(root.path("asked"))?;
    assert!(!during.contains("detach") && !during.contains("stop"), "{during}");
    fs::remove_file(root.path("asked"))?;

    root.replace("usr/bin/pls-router", r#"echo "router $*" >>/asked"#)?;
    let removed = root.inside(&["dpkg", "--remove", "pls-router"])?;
    assert!(removed.status.success(), "{}", said(&removed));
    let after = fs::read_to_string(root.path("asked"))?;
    let stop = after.find("invoke stop pls-router.socket pls-router.service");
    assert!(stop.is_some() && stop < after.find("router detach"), "{after}");
    Ok(())
}
