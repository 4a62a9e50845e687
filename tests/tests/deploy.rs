//! `cargo xtask deploy` against a real sshd, with a stand-in for systemd: see [`lab::target`].
//! Needs root.

// Its `#[test]` takes the place of the compiler's.
#[macro_use]
extern crate harness;

use std::{
    fs::{self, File},
    process::{Command, ExitCode, Output},
    time::Duration,
};

use harness::check;
use lab::{
    Lab, Nics, Options, Process, Router,
    addresses::{ANYWHERE, ECHO_PORT, ENDPOINT, PLS_SUBNET, TOOLS},
    client::Tcp,
    command,
    helper::Helper,
    target::{OPERATOR, Snapshot, Target},
    wait,
};

/// The time that a deploy may take to get to a point of its way, or to undo it.
const LIMIT: Duration = Duration::from_secs(60);

/// The time in which the echo server answers: no segment was lost.
const ECHO_LIMIT: Duration = Duration::from_secs(5);

/// An unused address of the router's subnet: ARP requests for it get no answer.
const UNUSED: &str = "10.0.2.126";

fn main() -> ExitCode {
    harness::main(harness::no_root("network namespaces need root"))
}

/// A lab, a target in it, and files to deploy.
struct Bench {
    target: Target,
    binary: String,
    // Dropped last: it ends everything on the target.
    lab: Lab,
}

impl Bench {
    fn up() -> Self {
        let router = check(Router::find());
        let Router::PlsRouter(binary) = &router else { panic!("{router:?} cannot be deployed") };
        let binary = binary.display().to_string();
        let helper = Helper::new(env!("CARGO_BIN_EXE_lab"));
        let lab = check(Lab::up(Options { start_router: false, ..Options::new(Nics::One, router, helper) }));
        let target = check(Target::start(&lab));
        Self { target, binary, lab }
    }

    /// Writes a configuration whose rule leads to `to`; its name has a space in it, as people's do.
    fn config(&self, name: &str, to: impl std::fmt::Display) -> String {
        self.config_on("eth0", name, to)
    }

    fn config_on(&self, interface: &str, name: &str, to: impl std::fmt::Display) -> String {
        let to = to.to_string();
        // A router with one good rule is healthy.
        let tools = if to == UNUSED { UNUSED.to_owned() } else { TOOLS.to_string() };
        let echo = format!(
            "[[forward]]\nname = \"echo\"\nprotocol = \"tcp\"\nlisten = \"{ECHO_PORT}\"\n\
             target = \"{tools}:{ECHO_PORT}\"\nsources = [\"{PLS_SUBNET}\"]\n\n"
        );
        let text = format!(
            "# {name}\n[interfaces]\npls = \"{interface}\"\n\n[[forward]]\nname = \"https\"\nprotocol = \"tcp\"\n\
             listen = \"443\"\ntarget = \"{to}:443\"\nsources = [\"{PLS_SUBNET}\"]\n\n{echo}[limits]\nflows = 4096\n"
        );
        let path = check(self.lab.state().write(&format!("tmp/my {name}.toml"), text));
        path.display().to_string()
    }

    /// Deploys this lab's binary.
    fn deploy(&self, args: &[&str]) -> Output {
        let args: Vec<&str> = ["--binary", &self.binary].into_iter().chain(args.iter().copied()).collect();
        let output = check(self.target.deploy(&self.lab, &args));
        // Shown if the test fails.
        println!("$ deploy {}\n{}", args.join(" "), said(&output));
        output
    }

    /// Deploys this lab's binary in the background.
    fn spawn(&self, args: &[&str]) -> Process {
        let args: Vec<&str> = ["--binary", &self.binary].into_iter().chain(args.iter().copied()).collect();
        let command = check(self.target.deploy_command(&self.lab, &args));
        check(Process::spawn(self.lab.state(), "deploy", command))
    }

    /// Deploys and succeeds. Returns the output.
    #[track_caller]
    fn succeed(&self, args: &[&str]) -> String {
        let output = self.deploy(args);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(0), "{said}");
        said
    }

    /// Deploys and fails, saying all of `texts`.
    #[track_caller]
    fn fail(&self, args: &[&str], texts: &[&str]) -> String {
        let output = self.deploy(args);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for text in texts {
            assert!(said.contains(text), "nothing about \"{text}\" in: {said}");
        }
        said
    }

    fn snapshot(&self) -> Snapshot {
        check(self.target.snapshot())
    }

    /// A file as it is on the target.
    fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.target.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The probe on the target answers 200, as the load balancer sees it from outside.
    #[track_caller]
    fn assert_in_service(&self) {
        check(self.lab.wait_in_service(Duration::from_secs(5)));
        assert_eq!(check(self.lab.health()).0, 200);
    }

    /// The first version, healthy.
    fn install(&self) -> String {
        let config = self.config("first", ANYWHERE);
        self.succeed(&["target", "--config", &config]);
        self.assert_in_service();
        config
    }
}

/// A connection through the router, to the echo server.
fn connect(bench: &Bench) -> Tcp {
    let echo = (ENDPOINT, ECHO_PORT).into();
    let mut tcp = check(Tcp::connect(&bench.lab.hosts.serverless, echo, ECHO_LIMIT));
    check(tcp.echo(b"before", ECHO_LIMIT));
    tcp
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_first_install_forwards() {
    let bench = Bench::up();
    bench.fail(&["target"], &["/etc/pls-router/config.toml", "--config FILE"]);
    let before = bench.snapshot();
    let config = bench.config("first", ANYWHERE);
    let plan = bench.succeed(&["target", "--config", &config, "--dry-run"]);
    assert!(plan.contains("install  /usr/bin/pls-router") && plan.contains("is good"), "{plan}");
    assert_eq!(bench.snapshot(), before);
    assert_eq!(before.daemon, None);

    let said = bench.succeed(&["target", "--config", &config]);
    bench.assert_in_service();
    assert!(said.contains("the probe answers 200"), "{said}");
    let installed = bench.snapshot();
    let modes: Vec<_> =
        installed.files.iter().map(|(path, mode, _)| (path.as_str(), mode.as_str())).collect();
    // Nothing else: the copies in /tmp are gone, and there is no previous version.
    let expected = [
        ("/etc/pls-router/config.toml", "640"),
        ("/etc/systemd/system/pls-router.service", "644"),
        ("/usr/bin/pls-router", "755"),
    ];
    assert_eq!(modes, expected);
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/pls-router.service");
    assert_eq!(
        bench.read("/etc/systemd/system/pls-router.service"),
        fs::read(unit).expect("the unit is there")
    );
    assert_eq!(bench.read("/etc/pls-router/config.toml"), fs::read(&config).expect("it was written"));
    let calls = String::from_utf8_lossy(&bench.read("/run/stand-in/calls")).into_owned();
    assert!(calls.contains("enable"), "{calls}");

    // Again: there is nothing to do, and no session is dropped for nothing.
    let said = bench.succeed(&["target", "--config", &config]);
    assert!(said.contains("installed already"), "{said}");
    assert_eq!(bench.snapshot(), installed);
    bench.succeed(&["target", "--restart"]);
    assert_ne!(bench.target.daemon(), installed.daemon);
    bench.assert_in_service();
}

#[test]
fn an_upgrade_keeps_the_previous_version() {
    let bench = Bench::up();
    let first = bench.install();
    let before = bench.snapshot();
    let second = bench.config("second", ANYWHERE);

    let plan = bench.succeed(&["target", "--config", &second, "--dry-run"]);
    for text in
        ["replace  /etc/pls-router/config.toml", "-# first", "+# second", "no session is lost", "dry run"]
    {
        assert!(plan.contains(text), "nothing about \"{text}\" in: {plan}");
    }
    assert_eq!(bench.snapshot(), before, "a dry run has changed something");

    // Like another deploy to the same machine.
    let path = bench.target.path("/run/pls-router-deploy.lock");
    let lock = File::options().write(true).open(path).expect("the first deploy made it");
    lock.lock().expect("a free lock");
    bench.fail(&["target", "--config", &second], &["somebody else is deploying", "nothing was changed"]);
    assert_eq!(bench.snapshot(), before);
    drop(lock);

    let mut tcp = connect(&bench);
    bench.succeed(&["target", "--config", &second]);
    check(tcp.echo(b"after the upgrade", ECHO_LIMIT));
    bench.assert_in_service();
    assert_ne!(bench.target.daemon(), before.daemon);
    assert_eq!(bench.read("/etc/pls-router/config.toml"), fs::read(second).expect("it was written"));
    assert_eq!(bench.read("/etc/pls-router/config.toml.previous"), fs::read(first).expect("it was written"));
}

#[test]
fn a_configuration_that_check_rejects_changes_nothing() {
    let bench = Bench::up();
    bench.install();
    let before = bench.snapshot();
    let bad = bench.config_on("eth7", "bad", ANYWHERE);
    // The file is named as it is here, not as its copy there.
    bench.fail(&["target", "--config", &bad], &["eth7", &bad, "nothing was changed"]);
    assert_eq!(bench.snapshot(), before);
    // A binary that does not run there, and one for another machine.
    let broken = check(
        bench.lab.state().write("tmp/broken", [b"\x7fELF\x02\x01".as_slice(), &[0; 12], b"\x3e\0"].concat()),
    );
    let broken = broken.display().to_string();
    let run = |binary: &str| said(&check(bench.target.deploy(&bench.lab, &["--binary", binary, "target"])));
    let text = run(&broken);
    assert!(text.contains("does not run there"), "{text}");
    let foreign = check(
        bench.lab.state().write("tmp/foreign", [b"\x7fELF\x02\x01".as_slice(), &[0; 12], b"\x08\0"].concat()),
    );
    let text = run(&foreign.display().to_string());
    assert!(text.contains("ELF machine 8"), "{text}");
    assert_eq!(bench.snapshot(), before);
    bench.assert_in_service();
}

#[test]
fn a_version_that_never_gets_healthy_is_rolled_back() {
    let bench = Bench::up();
    bench.install();
    let before = bench.snapshot();
    // Another version, by its bytes: binary and configuration have to come back, both.
    let mut other = fs::read(&bench.binary).expect("the binary can be read");
    other.push(0);
    let other = check(bench.lab.state().write("tmp/other version", other)).display().to_string();
    let deaf = bench.config("deaf", UNUSED);
    let said = bench.fail(
        &["target", "--binary", &other, "--config", &deaf, "--timeout", "4"],
        &[
            "replace  /usr/bin/pls-router",
            "not healthy within 4 s",
            UNUSED,
            "the previous version runs again",
            "taken back",
        ],
    );
    assert!(said.contains("journal"), "{said}");
    let after = bench.snapshot();
    assert_eq!(after.files, before.files);
    assert_ne!(after.daemon, before.daemon, "the previous version was not started again");
    bench.assert_in_service();
}

#[test]
fn a_first_install_that_fails_leaves_nothing() {
    let bench = Bench::up();
    let before = bench.snapshot();
    let deaf = bench.config("deaf", UNUSED);
    bench.fail(
        &["target", "--config", &deaf, "--timeout", "4"],
        &["not healthy within 4 s", "was not running before", "all is as it was before"],
    );
    let after = bench.snapshot();
    assert_eq!(after, before);
    assert_eq!(after.daemon, None);
    assert!(!bench.target.path("/etc/pls-router").exists());
    let shown = check(bench.lab.hosts.router.run("ip", &["link", "show", "dev", "eth0"]));
    assert!(!shown.contains("xdp"), "a program is still attached: {shown}");
}

#[test]
fn a_version_that_does_not_start_is_rolled_back() {
    let bench = Bench::up();
    bench.install();
    let before = bench.snapshot();
    let second = bench.config("second", ANYWHERE);
    let mut tcp = connect(&bench);
    check(bench.target.hold(true));
    let mut deploy = bench.spawn(&["target", "--config", &second, "--timeout", "1"]);
    check(deploy.wait_for_log("putting back", LIMIT));
    // No daemon runs.
    check(tcp.echo(b"meanwhile", ECHO_LIMIT));
    assert!(deploy.output().contains("did not start"), "{}", deploy.output());
    check(bench.target.hold(false));
    let status = check(deploy.wait(LIMIT));
    assert_eq!(status.code(), Some(1), "{}", deploy.output());
    assert!(deploy.output().contains("all is as it was before"), "{}", deploy.output());
    assert_eq!(bench.snapshot().files, before.files);
    bench.assert_in_service();
    check(tcp.echo(b"after", ECHO_LIMIT));
}

/// New connections stay away before the restart, and come back after it, whether the new version
/// stays or not.
#[test]
fn a_drained_upgrade_loses_no_session_and_ends_the_drain() {
    let bench = Bench::up();
    bench.install();
    let mut tcp = connect(&bench);
    let second = bench.config("second", ANYWHERE);
    let said = bench.succeed(&["target", "--config", &second, "--drain", "1s"]);
    for text in ["drain for up to 1s", "draining for up to 1s", "not drained in 1s", "the probe answers 200"]
    {
        assert!(said.contains(text), "nothing about \"{text}\" in: {said}");
    }
    check(tcp.echo(b"after", ECHO_LIMIT));
    bench.assert_in_service();

    let deaf = bench.config("deaf", UNUSED);
    bench.fail(
        &["target", "--config", &deaf, "--timeout", "4", "--drain", "1s"],
        &["not healthy within 4 s", "all is as it was before"],
    );
    check(tcp.echo(b"after a failure", ECHO_LIMIT));
    bench.assert_in_service();
    let output = bench.deploy(&["target", "--drain", "soon"]);
    assert_eq!(output.status.code(), Some(2));
}

/// The router takes the connection with it, or the person closes the lid.
#[test]
fn a_lost_connection_rolls_back_to_the_previous_version() {
    let bench = Bench::up();
    bench.install();
    let before = bench.snapshot();
    let second = bench.config("second", ANYWHERE);
    check(bench.target.hold(true));
    let mut deploy = bench.spawn(&["target", "--config", &second]);
    check(deploy.wait_for_log("installed; what was there", LIMIT));
    check(deploy.kill());
    check(bench.target.hold(false));
    check(wait::until("the previous version to run again", LIMIT, || {
        // A file may go while it is looked at.
        let now = bench.target.snapshot()?;
        anyhow::ensure!(now.files == before.files && now.daemon.is_some(), "{now:#?}");
        Ok(())
    }));
    check(wait::until("the machine to be done", LIMIT, || {
        let lock = bench.target.path("/run/pls-router-deploy.lock");
        let free = Command::new("flock").args(["--nonblock"]).arg(lock).arg("true").status()?;
        anyhow::ensure!(free.success(), "the lock is still held");
        Ok(())
    }));
    assert_eq!(bench.snapshot().files, before.files);
    bench.assert_in_service();
}

#[test]
fn unusable_hosts_have_distinct_errors() {
    let bench = Bench::up();
    let config = bench.config("first", ANYWHERE);
    let before = bench.snapshot();
    let cases: [(&str, &[&str]); 5] = [
        ("nowhere", &["nowhere: it cannot be reached", "fix: check that it is up"]),
        ("stranger", &["its host key is not known here", "compare the fingerprint"]),
        ("locked-out", &["it does not let us in", "ssh-add"]),
        ("no-such-host.invalid", &["there is no such host", "check the name"]),
        (OPERATOR, &["is not root and may not become it", "fix: "]),
    ];
    for (host, texts) in cases {
        bench.fail(&[host, "--config", &config], texts);
    }
    // The first failure ends it, and all are accounted for.
    bench.fail(
        &["target", "nowhere", OPERATOR, "--config", &config, "--dry-run"],
        &["target: would be done", "nowhere: FAILED", "operator: not touched"],
    );
    assert_eq!(bench.snapshot(), before);
    let output = bench.deploy(&[]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert_eq!(said(&output).matches("which HOST").count(), 1, "{}", said(&output));
}

/// As on Azure, where the user is not root but may use sudo.
#[test]
fn sudo_is_used_where_it_has_to_be() {
    let bench = Bench::up();
    check(command::require("sudo"));
    check(bench.target.allow_sudo());
    let config = bench.config("first", ANYWHERE);
    let said = bench.succeed(&[OPERATOR, "--config", &config]);
    assert!(said.contains("as operator, with sudo"), "{said}");
    bench.assert_in_service();
    let installed = bench.snapshot();
    assert!(!installed.files.iter().any(|(path, ..)| path.starts_with("/tmp/")), "{installed:#?}");
    let deaf = bench.config("deaf", UNUSED);
    bench.fail(
        &[OPERATOR, "--config", &deaf, "--timeout", "4"],
        &["not healthy within 4 s", "all is as it was before"],
    );
    assert_eq!(bench.snapshot().files, installed.files);
    bench.assert_in_service();
}
