//! `cargo xtask deploy` against a real sshd, with a stand-in for systemd: see [`lab::target`].
//! Needs root.

// Its `#[test]` takes the place of the compiler's.
#[macro_use]
extern crate harness;

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
    time::Duration,
};

use anyhow::ensure;
use harness::{
    check,
    guides::{self, Block, Outcome, Runner, Step, accounts},
};
use lab::{
    Lab, Nics, Options, Process, Router,
    addresses::{ANYWHERE, ECHO_PORT, ENDPOINT, PLS_SUBNET, TOOLS},
    client::Tcp,
    command,
    helper::Helper,
    target::{self, OPERATOR, Snapshot, Target},
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
        let binary = binary.clone();
        let helper = Helper::new(env!("CARGO_BIN_EXE_lab"));
        let lab = check(Lab::up(Options { start_router: false, ..Options::new(Nics::One, router, helper) }));
        let target = check(Target::start(&lab, 0));
        let stripped = lab.state().path("tmp/pls-router");
        check(target::strip(&binary, &stripped));
        let binary = stripped.display().to_string();
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
        self.xtask(&self.with_binary(args))
    }

    /// Runs `xtask deploy` with these arguments as they are.
    fn xtask(&self, args: &[&str]) -> Output {
        let output = check(self.target.deploy(&self.lab, args));
        // Shown if the test fails.
        println!("$ deploy {}\n{}", args.join(" "), said(&output));
        output
    }

    /// These arguments, with this lab's binary to install. What is said last counts.
    fn with_binary<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        let ours = ["--healthy-for", "0", "--binary", &self.binary];
        let ours = if args.contains(&"--binary") { &ours[..2] } else { &ours[..] };
        ours.iter().chain(args).copied().collect()
    }

    /// Deploys this lab's binary in the background.
    fn spawn(&self, args: &[&str]) -> Process {
        let command = check(self.target.deploy_command(&self.lab, &self.with_binary(args)));
        check(Process::spawn(self.lab.state(), "deploy", command))
    }

    /// Deploys and succeeds. Returns the output.
    #[track_caller]
    fn succeed(&self, args: &[&str]) -> String {
        let output = self.deploy(args);
        succeeded(&output)
    }

    /// Deploys and fails, saying all of `texts`.
    #[track_caller]
    fn fail(&self, args: &[&str], texts: &[&str]) -> String {
        failed(&self.deploy(args), texts)
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

#[track_caller]
fn succeeded(output: &Output) -> String {
    let said = said(output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    said
}

/// It failed, and said all of `texts`.
#[track_caller]
fn failed(output: &Output, texts: &[&str]) -> String {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    mentions(&said, texts);
    said
}

#[track_caller]
fn mentions(said: &str, texts: &[&str]) {
    for text in texts {
        assert!(said.contains(text), "nothing about \"{text}\" in: {said}");
    }
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
        ("/etc/systemd/system/pls-router.socket", "644"),
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
    bench.fail(&["target", "--config", &second], &["somebody else is deploying", "try again"]);
    assert_eq!(bench.snapshot(), before);
    drop(lock);

    let mut tcp = connect(&bench);
    bench.succeed(&["target", "--config", &second]);
    check(tcp.echo(b"after the upgrade", ECHO_LIMIT));
    bench.assert_in_service();
    assert_ne!(bench.target.daemon(), before.daemon);
    assert_eq!(bench.read("/etc/pls-router/config.toml"), fs::read(second).expect("it was written"));
    assert_eq!(
        bench.read("/var/lib/pls-router-deploy/previous/tree/etc/pls-router/config.toml"),
        fs::read(first).expect("it was written")
    );
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
    let binary = fs::read(&bench.binary).expect("the binary can be read");
    let loader = b"/lib64/ld-linux";
    let at = binary.windows(loader.len()).position(|text| text == loader).expect("it has a loader");
    let mut broken = binary.clone();
    broken[at + 1] = b'X';
    let mut foreign = binary;
    // The machine in the header of ELF: RISC-V.
    foreign[18] = 243;
    for (name, bytes, texts) in [
        ("broken", broken, ["does not run there", "nothing was changed"]),
        ("foreign", foreign, ["this machine is x86_64", "is for riscv64"]),
    ] {
        let path = check(bench.lab.state().write(&format!("tmp/{name}"), bytes)).display().to_string();
        bench.fail(&["--binary", &path, "target"], &texts);
    }
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
        &["target", "--binary", &other, "--config", &deaf, "--timeout", "10"],
        &[
            "replace  /usr/bin/pls-router",
            "not healthy within 10 s",
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
        &["target", "--config", &deaf, "--timeout", "10"],
        &["not healthy within 10 s", "was not running before", "all is as it was before"],
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
        &["target", "--config", &deaf, "--timeout", "10", "--drain", "1s"],
        &["not healthy within 10 s", "all is as it was before"],
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
    let cases: [(&str, &[&str]); 7] = [
        ("nowhere", &["nowhere: it cannot be reached", "fix: check that it is up"]),
        ("closed", &["closed: it cannot be reached", "Connection refused", "that it runs sshd"]),
        ("stranger", &["its host key is not known here", "compare the fingerprint"]),
        ("impostor", &["its host key is not the one that is known", "ssh-keygen -R"]),
        ("locked-out", &["it does not let us in", "ssh-add"]),
        ("no-such-host.invalid", &["there is no such host", "check the name"]),
        (OPERATOR, &["is not root and may not become it", "fix: "]),
    ];
    for (host, texts) in cases {
        bench.fail(&[host, "--config", &config], texts);
    }
    // One that cannot take it keeps all from being changed, and all are accounted for.
    bench.fail(
        &["target", "nowhere", OPERATOR, "--config", &config],
        &[
            "nothing was changed on any host",
            "target:    would be done",
            "nowhere:   FAILED, nothing was changed",
            "azureuser: FAILED, nothing was changed",
        ],
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
    assert!(said.contains("as azureuser, with sudo"), "{said}");
    bench.assert_in_service();
    let installed = bench.snapshot();
    assert!(!installed.files.iter().any(|(path, ..)| path.starts_with("/tmp/")), "{installed:#?}");
    let deaf = bench.config("deaf", UNUSED);
    bench.fail(
        &[OPERATOR, "--config", &deaf, "--timeout", "10"],
        &["not healthy within 10 s", "all is as it was before"],
    );
    assert_eq!(bench.snapshot().files, installed.files);
    bench.assert_in_service();
}

/// A person has drained it, and nothing ends that but this person.
#[test]
fn a_drain_of_somebody_else_goes_on() {
    let bench = Bench::up();
    bench.install();
    check(bench.target.run(&bench.lab, "/usr/bin/pls-router drain"));
    let second = bench.config("second", ANYWHERE);
    let said = bench.succeed(&["target", "--config", &second, "--drain", "10s"]);
    mentions(&said, &["goes on draining", "drains as before"]);
    assert!(!said.contains("draining for up to"), "{said}");
    // Nothing to do, although the probe answers 503.
    let again = bench.succeed(&["target", "--config", &second]);
    assert!(again.contains("installed already"), "{again}");
    let status = bench.xtask(&["status", "target"]);
    failed(&status, &["draining"]);
    check(bench.target.run(&bench.lab, "/usr/bin/pls-router undrain"));
    bench.assert_in_service();
}

#[test]
fn a_version_that_does_not_stay_healthy_is_rolled_back() {
    let bench = Bench::up();
    bench.install();
    let before = bench.snapshot();
    let mut tcp = connect(&bench);
    let second = bench.config("second", ANYWHERE);
    let mut deploy = bench.spawn(&["target", "--config", &second, "--healthy-for", "1m"]);
    check(deploy.wait_for_log("it has to stay so for 60 s", LIMIT));
    let daemon = bench.target.daemon().expect("the new version runs");
    check(Command::new("kill").args(["-KILL", &daemon.to_string()]).status().map_err(Into::into));
    let status = check(deploy.wait(LIMIT));
    assert_eq!(status.code(), Some(1), "{}", deploy.output());
    mentions(&deploy.output(), &["did not stay so for 60 s", "all is as it was before"]);
    assert_eq!(bench.snapshot().files, before.files);
    bench.assert_in_service();
    check(tcp.echo(b"after", ECHO_LIMIT));
}

#[test]
fn a_rollback_puts_the_previous_version_back() {
    let bench = Bench::up();
    failed(&bench.xtask(&["rollback", "target"]), &["no deploy has replaced anything", "fix: "]);
    let first = bench.install();
    failed(&bench.xtask(&["rollback", "target"]), &["no deploy has replaced anything"]);
    let second = bench.config("second", ANYWHERE);
    bench.succeed(&["target", "--config", &second]);
    let mut tcp = connect(&bench);

    let before = bench.snapshot();
    succeeded(&bench.xtask(&["rollback", "target", "--dry-run"]));
    assert_eq!(bench.snapshot(), before);
    let said = succeeded(&bench.xtask(&["rollback", "target", "--healthy-for", "0"]));
    mentions(&said, &["replace  /etc/pls-router/config.toml", "the probe answers 200"]);
    assert_eq!(bench.read("/etc/pls-router/config.toml"), fs::read(&first).expect("it was written"));
    check(tcp.echo(b"after the rollback", ECHO_LIMIT));
    // And forward again.
    succeeded(&bench.xtask(&["rollback", "target", "--healthy-for", "0"]));
    assert_eq!(bench.read("/etc/pls-router/config.toml"), fs::read(&second).expect("it was written"));
    check(tcp.echo(b"after another", ECHO_LIMIT));
    bench.assert_in_service();
}

/// As by a reboot: the script on the machine ends, and nothing there goes on.
#[test]
fn an_interrupted_deploy_is_found_and_undone() {
    let bench = Bench::up();
    let first = bench.install();
    let before = bench.snapshot();
    let mut tcp = connect(&bench);
    let second = bench.config("second", ANYWHERE);
    check(bench.target.hold(true));
    let mut deploy = bench.spawn(&["target", "--config", &second]);
    check(deploy.wait_for_log("installed; what was there", LIMIT));
    check(bench.target.run(&bench.lab, "kill -KILL $(cat /run/pls-router-deploy.lock)"));
    check(bench.target.hold(false));
    assert_eq!(check(deploy.wait(LIMIT)).code(), Some(1), "{}", deploy.output());
    assert_eq!(bench.read("/etc/pls-router/config.toml"), fs::read(&second).expect("it was written"));

    bench.fail(&["target", "--config", &second], &["half of an earlier deploy", "deploy rollback target"]);
    let status = said(&bench.xtask(&["status", "target"]));
    mentions(&status, &["half of a deploy is there", "deploy rollback target"]);
    let undone = succeeded(&bench.xtask(&["rollback", "target"]));
    mentions(&undone, &["undo a deploy that was interrupted", "the previous version runs again"]);
    assert_eq!(bench.snapshot().files, before.files);
    assert_eq!(bench.read("/etc/pls-router/config.toml"), fs::read(&first).expect("it was written"));
    bench.assert_in_service();
    check(tcp.echo(b"after", ECHO_LIMIT));
    bench.succeed(&["target", "--config", &second]);
}

/// What a machine has or lacks, each with what to do, and nothing is changed.
#[test]
fn machines_that_cannot_take_it_are_left_alone() {
    let bench = Bench::up();
    let config = bench.config("first", ANYWHERE);
    let before = bench.snapshot();
    let target = &bench.target;
    let undo = |script: &str| drop(check(target.run(&bench.lab, script)));
    let deploy = |texts: &[&str]| bench.fail(&["target", "--config", &config], texts);

    let real = "case $1 in -r) echo 5.15.0-1-azure ;; *) exec /usr/bin/uname \"$@\" ;; esac";
    check(target.stand_in("uname", real));
    deploy(&["its kernel 5.15.0-1-azure is too old", "fix: install Linux 6.1"]);
    check(target.stand_in("uname", "case $1 in -m) echo riscv64 ;; *) exec /usr/bin/uname \"$@\" ;; esac"));
    deploy(&["this machine is riscv64", "fix: add one that was built for riscv64"]);
    undo("rm /usr/local/bin/uname");

    check(target.stand_in("date", "echo $(($(/usr/bin/date +%s) - 7200))"));
    deploy(&["its clock is", "behind this machine's", "fix: set the wrong one"]);
    undo("rm /usr/local/bin/date");

    // Really full ones.
    let small = "for place in /tmp /var/tmp /root; do mount -t tmpfs -o size=1m small $place; done";
    undo(small);
    deploy(&["no directory there", "/tmp has 1 MiB free of the", "fix: make room"]);
    undo("umount --lazy /tmp /var/tmp /root");
    undo("mkdir /var/lib/pls-router-deploy && mount -t tmpfs -o size=1m small /var/lib/pls-router-deploy");
    deploy(&["there is no room in /var/lib/pls-router-deploy: 1 MiB are free", "fix: make room"]);
    undo("umount /var/lib/pls-router-deploy && rmdir /var/lib/pls-router-deploy");

    let unit = "/etc/systemd/system/pls-router.service";
    undo(&format!("printf '[Service]\\nExecStart=/opt/own-router\\n' >{unit}"));
    deploy(&["another unit", unit, "starts /opt/own-router", "fix: "]);
    undo(&format!("ln -sf /dev/null {unit}"));
    deploy(&["pls-router.service is masked", "systemctl unmask"]);
    undo(&format!("rm {unit}"));
    assert_eq!(bench.snapshot(), before);
    deploy_succeeds(&bench, &config);
}

fn deploy_succeeds(bench: &Bench, config: &str) {
    bench.succeed(&["target", "--config", config]);
    bench.assert_in_service();
}

#[test]
fn status_tells_and_remove_takes_it_off() {
    let bench = Bench::up();
    let none = bench.xtask(&["status", "target", "closed"]);
    failed(&none, &["not installed", "unreachable", "Connection refused"]);
    bench.install();
    let mut tcp = connect(&bench);
    let said = succeeded(&bench.xtask(&["status", "target"]));
    mentions(&said, &["HOST", "target", "files", "healthy"]);
    // The number of sessions is as of the last sweep.
    let json = check(wait::until("the session to be counted", LIMIT, || {
        let json = bench.xtask(&["status", "target", "-o", "json"]);
        let json: serde_json::Value = serde_json::from_slice(&json.stdout)?;
        ensure!(json[0]["sessions"] == 1, "{json:#}");
        Ok(json)
    }));
    assert_eq!((&json[0]["healthy"], &json[0]["installed_as"]), (&true.into(), &"files".into()), "{json:#}");
    assert_eq!(json[0]["version"], json[0]["running_version"], "{json:#}");

    let before = bench.snapshot();
    succeeded(&bench.xtask(&["remove", "target", "--dry-run"]));
    assert_eq!(bench.snapshot(), before);
    check(tcp.echo(b"still there", ECHO_LIMIT));
    let said = succeeded(&bench.xtask(&["remove", "target", "--drain", "1s"]));
    mentions(&said, &["draining for up to 1s", "pls-router is gone"]);
    let after: Vec<_> = bench.snapshot().files.into_iter().map(|(path, ..)| path).collect();
    assert_eq!(after, ["/etc/pls-router/config.toml"]);
    let shown = check(bench.lab.hosts.router.run("ip", &["link", "show", "dev", "eth0"]));
    assert!(!shown.contains("xdp"), "a program is still attached: {shown}");
    let again = succeeded(&bench.xtask(&["remove", "target"]));
    assert!(again.contains("not installed there"), "{again}");
    succeeded(&bench.xtask(&["remove", "target", "--purge"]));
    assert_eq!(bench.snapshot().files, []);
    assert!(!bench.target.path("/etc/pls-router").exists());
    assert!(!bench.target.path("/var/lib/pls-router").exists());
}

/// Three machines, each with its own network, by one inventory.
struct Fleet {
    benches: Vec<Bench>,
    inventory: String,
    ssh_config: String,
}

impl Fleet {
    fn up() -> Self {
        Self::named(["router-1", "router-2", "router-3"])
    }

    fn named(names: [&str; 3]) -> Self {
        let benches: Vec<_> = names.iter().map(|_| Bench::up()).collect();
        let state = benches[0].lab.state();
        let known = benches.iter().zip(names).map(|(bench, name)| bench.target.known_as(&bench.lab, name));
        let ssh_config = check(state.write("tmp/fleet_ssh_config", known.collect::<String>()));
        let [one, two, three] = names;
        let inventory = format!("# zone 1\n{one}\n\n{two} # zone 2\n{three}\n");
        let inventory = check(state.write("tmp/inventory", inventory));
        Self {
            inventory: inventory.display().to_string(),
            ssh_config: ssh_config.display().to_string(),
            benches,
        }
    }

    fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        let ours = ["--ssh-config", &self.ssh_config, "--inventory", &self.inventory];
        args.iter().copied().chain(ours).collect()
    }

    fn deploy(&self, args: &[&str]) -> Output {
        self.benches[0].deploy(&self.args(args))
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        self.benches.iter().map(Bench::snapshot).collect()
    }
}

#[test]
fn a_fleet_is_upgraded_in_turn_and_stops_at_the_first_failure() {
    let fleet = Fleet::up();
    let [first, second, third] = &fleet.benches[..] else { unreachable!("there are three") };
    let config = first.config("first", ANYWHERE);
    // Nobody is touched while one of them cannot take it.
    check(
        second
            .target
            .stand_in("uname", "case $1 in -r) echo 5.15.0 ;; *) exec /usr/bin/uname \"$@\" ;; esac"),
    );
    let before = fleet.snapshots();
    failed(
        &fleet.deploy(&["--config", &config]),
        &[
            "router-2: its kernel 5.15.0 is too old",
            "nothing was changed on any host",
            "router-1: would be done",
        ],
    );
    assert_eq!(fleet.snapshots(), before);
    check(second.target.run(&second.lab, "rm /usr/local/bin/uname"));
    let plan = succeeded(&fleet.deploy(&["--config", &config, "--dry-run"]));
    mentions(&plan, &["dry run, nothing was changed", "router-3: would be done"]);
    assert_eq!(fleet.snapshots(), before);

    // All at once.
    let said = succeeded(&fleet.deploy(&["--config", &config, "--max-unavailable", "3", "--drain", "0"]));
    mentions(&said, &["router-1: done", "router-2: done", "router-3: done"]);
    let status = succeeded(&first.xtask(&fleet.args(&["status"])));
    assert_eq!(status.matches("healthy").count(), 3, "{status}");

    // The second does not start the new version.
    let mut tcps: Vec<_> = fleet.benches.iter().map(connect).collect();
    let before = fleet.snapshots();
    let changed = first.config("second", ANYWHERE);
    let args = ["--config", &changed, "--drain", "1s", "--healthy-for", "1s"];
    check(second.target.hold(true));
    let mut deploy = first.spawn(&fleet.args(&[&args[..], &["--timeout", "15"]].concat()));
    check(deploy.wait_for_log("putting back", LIMIT * 3));
    check(second.target.hold(false));
    assert_eq!(check(deploy.wait(LIMIT)).code(), Some(1), "{}", deploy.output());
    mentions(
        &deploy.output(),
        &[
            "draining for up to 1s",
            "it has to stay so for 1 s",
            "router-2: the new version was taken back",
            "router-1: done",
            "router-2: FAILED, the previous version is back",
            "router-3: not touched",
        ],
    );
    assert_eq!(second.snapshot().files, before[1].files);
    assert_eq!(third.snapshot(), before[2]);
    let done = first.snapshot();
    assert_ne!(done.daemon, before[0].daemon);

    // The same again goes on from there.
    let said = succeeded(&fleet.deploy(&args));
    mentions(&said, &["router-1: was done already, left alone", "router-2: done", "router-3: done"]);
    assert_eq!(first.snapshot(), done);
    assert_ne!(third.snapshot().daemon, before[2].daemon);
    for (bench, tcp) in fleet.benches.iter().zip(&mut tcps) {
        check(tcp.echo(b"after", ECHO_LIMIT));
        bench.assert_in_service();
    }
}

/// The commands of the guides that deploy, in the words of the reader: each page's blocks run one
/// after the other, on three routers that are there already.
#[test]
fn commands_of_the_guides_do_what_they_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let pages = guides::pages(&root).unwrap_or_else(|wrong| panic!("{}", wrong.join("\n")));
    let deploys = |block: &Block| matches!(block, Block::Commands { runner: Runner::Deploy, .. });
    let mut inline = accounts::inline(&pages, Runner::Deploy);
    assert!(inline.len() > 1, "only {} commands within sentences", inline.len());
    let mut ran = 0;
    for page in pages.iter().filter(|page| page.blocks.iter().any(deploys)) {
        let desk = Desk::new();
        for block in &page.blocks {
            match block {
                Block::File { name, text } => {
                    check(fs::write(desk.directory.join(name), text).map_err(Into::into));
                }
                Block::Commands { runner: Runner::Deploy, commands } => {
                    for step in commands {
                        desk.follow(&page.path, step);
                        ran += 1;
                    }
                }
                Block::Commands { .. } => {}
            }
        }
        // Those within sentences, of all pages: at the first desk, where the router still is.
        for (page, step) in inline.drain(..) {
            desk.follow(&page, &step);
        }
    }
    assert!(ran > 5, "only {ran} commands");
    assert!(inline.is_empty(), "no page had a desk for the commands within sentences");
}

/// The desk of somebody who deploys: `cargo xtask deploy` is there, and ships a new version.
struct Desk {
    fleet: Fleet,
    directory: PathBuf,
}

impl Desk {
    /// With routers at the addresses that the guides have.
    fn new() -> Self {
        let addresses = ["10.0.2.68", "10.0.2.69", "10.0.2.70"];
        let fleet = Fleet::named(addresses);
        let first = &fleet.benches[0];
        let config = first.config("first", ANYWHERE);
        let installs = ["--config", &config, "--max-unavailable", "3", "--drain", "0"];
        succeeded(&fleet.deploy(&installs));
        check(command::require("sudo"));
        for bench in &fleet.benches {
            check(bench.target.allow_sudo());
        }
        let state = first.lab.state();
        let directory = check(state.directory("desk"));
        let changed = check(fs::read(first.config("second", ANYWHERE)).map_err(Into::into));
        for name in ["router.toml", "my-config.toml"] {
            check(fs::write(directory.join(name), &changed).map_err(Into::into));
        }
        let mut binary = check(fs::read(&first.binary).map_err(Into::into));
        binary.push(0);
        let binary = check(state.write("tmp/new version", binary));
        let cargo = format!(
            "#!/bin/sh\n\
             [ \"$1 $2\" = 'xtask deploy' ] || exit 127\n\
             shift 2\n\
             case $1 in\n\
             status | remove) ;;\n\
             rollback) set -- \"$@\" --healthy-for 1 ;;\n\
             *) set -- \"$@\" --healthy-for 1 --binary '{}' ;;\n\
             esac\n\
             exec '{}' deploy \"$@\" --ssh-config '{}'\n",
            binary.display(),
            check(target::xtask()).display(),
            fleet.ssh_config
        );
        let program = check(state.write("desk/cargo", cargo));
        check(fs::set_permissions(program, fs::Permissions::from_mode(0o755)).map_err(Into::into));
        Self { fleet, directory }
    }

    #[track_caller]
    fn follow(&self, page: &Path, step: &Step) {
        let followed = step.follow(page, |line| self.shell(line));
        followed.unwrap_or_else(|wrong| panic!("{wrong}"));
    }

    /// Runs a command line, with the names of hosts for what a reader puts there.
    fn shell(&self, line: &str) -> Outcome {
        let line = line.replace("HOST...", &format!("{} {}", HOSTS[0], HOSTS[1])).replace("HOST", HOSTS[0]);
        let lab = &self.fleet.benches[0].lab;
        let mut shell = check(lab.hosts.vm.command("sh"));
        shell.args(["-c", &format!("exec 2>&1\n{line}")]).current_dir(&self.directory);
        shell.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.directory.display()));
        shell.env("TMPDIR", lab.state().path("tmp"));
        check(command::output(&mut shell)).into()
    }
}

/// Hosts of the desk's fleet, as ssh knows them.
const HOSTS: [&str; 2] = ["azureuser@10.0.2.68", "azureuser@10.0.2.69"];

impl Bench {
    /// A Debian package of this version, made as `cargo xtask dist` makes it. Each version is
    /// another binary, by its bytes.
    fn package(&self, version: &str) -> String {
        if harness::packages::find_program("systemd-sysusers").is_none() {
            harness::skip("the package depends on systemd, which is not installed here");
        }
        let mut binary = fs::read(&self.binary).expect("the binary can be read");
        binary.extend_from_slice(version.as_bytes());
        let binary = check(self.lab.state().write("tmp/to package", binary));
        check(fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).map_err(Into::into));
        // `dist` works in one directory, and other tests make packages at the same time.
        let lock = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dist.lock");
        let lock = check(File::create(lock).map_err(Into::into));
        check(lock.lock().map_err(Into::into));
        let made = check(self.target.dist(&binary, version));
        let folder = made.lines().find_map(|line| line.strip_prefix("in ")?.strip_suffix(':'));
        let start = format!("pls-router_{version}_");
        let mut words = made.lines().filter_map(|line| line.split_whitespace().last());
        let name = words.find(|word| word.starts_with(&start) && word.ends_with(".deb"));
        let (Some(folder), Some(name)) = (folder, name) else { panic!("no package in: {made}") };
        let ours = check(fs::read(Path::new(folder).join(name)).map_err(Into::into));
        check(self.lab.state().write(&format!("tmp/{name}"), ours)).display().to_string()
    }

    /// Deploys a package, with these arguments.
    fn deploy_package(&self, package: &str, args: &[&str]) -> Output {
        let ours = ["target", "--package", package, "--healthy-for", "0"];
        self.xtask(&ours.into_iter().chain(args.iter().copied()).collect::<Vec<_>>())
    }

    /// The state and the version of the package on the target, in dpkg's words.
    fn installed_package(&self) -> String {
        let query = "dpkg-query -W -f '${db:Status-Status} ${Version}' pls-router 2>/dev/null || true";
        check(self.target.run(&self.lab, query)).trim().to_owned()
    }
}

#[test]
fn a_package_is_installed_upgraded_and_put_back() {
    let bench = Bench::up();
    let (one, two) = (bench.package("1.0"), bench.package("2.0"));
    let config = bench.config("first", ANYWHERE);
    let said = succeeded(&bench.deploy_package(&one, &["--config", &config]));
    mentions(&said, &["install  package pls-router 1.0", "install  /etc/pls-router/config.toml"]);
    bench.assert_in_service();
    assert_eq!(bench.installed_package(), "installed 1.0");
    assert!(!bench.target.path("/etc/systemd/system/pls-router.service").exists());
    let calls = String::from_utf8_lossy(&bench.read("/run/stand-in/calls")).into_owned();
    assert_eq!(calls.matches(" start ").count() + calls.matches(" restart ").count(), 1, "{calls}");
    let again = succeeded(&bench.deploy_package(&one, &["--config", &config]));
    assert!(again.contains("installed already"), "{again}");
    // A binary alone would be behind dpkg's back.
    bench.fail(&["target"], &["is there as a package (1.0)", "--package FILE"]);

    let mut tcp = connect(&bench);
    let said = succeeded(&bench.deploy_package(&two, &[]));
    mentions(&said, &["replace  package pls-router 1.0 -> 2.0", "keep     /etc/pls-router/config.toml"]);
    check(tcp.echo(b"after the upgrade", ECHO_LIMIT));
    bench.assert_in_service();
    assert_eq!(bench.installed_package(), "installed 2.0");
    let status = bench.xtask(&["status", "target", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(
        (&status[0]["installed_as"], &status[0]["package_version"]),
        (&"package".into(), &"2.0".into())
    );

    let said = succeeded(&bench.xtask(&["rollback", "target", "--healthy-for", "0"]));
    mentions(&said, &["replace  package pls-router 2.0 -> 1.0"]);
    check(tcp.echo(b"after the way back", ECHO_LIMIT));
    assert_eq!(bench.installed_package(), "installed 1.0");
    assert_eq!(bench.read("/etc/pls-router/config.toml"), fs::read(&config).expect("it was written"));
    bench.assert_in_service();
    // dpkg still knows that a person wrote the configuration, and will never replace it.
    check(fs::copy(&two, bench.target.path("/var/two.deb")).map_err(Into::into));
    check(bench.target.run(&bench.lab, "dpkg --force-confdef --install /var/two.deb </dev/null"));
    assert_eq!(bench.read("/etc/pls-router/config.toml"), fs::read(&config).expect("it was written"));
    check(tcp.echo(b"after dpkg", ECHO_LIMIT));

    succeeded(&bench.xtask(&["remove", "target"]));
    assert_eq!(bench.installed_package(), "config-files 2.0");
    succeeded(&bench.xtask(&["remove", "target", "--purge"]));
    assert_eq!((bench.installed_package().as_str(), bench.snapshot().files), ("", vec![]));
}

#[test]
fn a_package_that_never_gets_healthy_is_taken_back() {
    let bench = Bench::up();
    let (one, two) = (bench.package("1.0"), bench.package("2.0"));
    let (good, deaf) = (bench.config("first", ANYWHERE), bench.config("deaf", UNUSED));
    let bad = ["--config", deaf.as_str(), "--timeout", "10"];
    let before = bench.snapshot();
    failed(&bench.deploy_package(&one, &bad), &["not healthy within 10 s", "all is as it was before"]);
    assert_eq!((bench.installed_package().as_str(), bench.snapshot()), ("", before));
    let shown = check(bench.lab.hosts.router.run("ip", &["link", "show", "dev", "eth0"]));
    assert!(!shown.contains("xdp"), "a program is still attached: {shown}");

    succeeded(&bench.deploy_package(&one, &["--config", &good]));
    let before = bench.snapshot();
    let mut tcp = connect(&bench);
    failed(&bench.deploy_package(&two, &bad), &["not healthy within 10 s", "all is as it was before"]);
    assert_eq!((bench.installed_package().as_str(), bench.snapshot().files), ("installed 1.0", before.files));
    bench.assert_in_service();
    check(tcp.echo(b"after", ECHO_LIMIT));
}

#[test]
fn a_machine_with_files_gets_the_package_and_keeps_its_sessions() {
    let bench = Bench::up();
    let package = bench.package("1.0");
    bench.install();
    let before = bench.snapshot();
    let mut tcp = connect(&bench);
    let deaf = bench.config("deaf", UNUSED);
    failed(
        &bench.deploy_package(&package, &["--config", &deaf, "--timeout", "10"]),
        &["not healthy within 10 s", "all is as it was before"],
    );
    assert_eq!((bench.installed_package().as_str(), bench.snapshot().files), ("", before.files));
    check(tcp.echo(b"after a failure", ECHO_LIMIT));
    bench.assert_in_service();

    let said = succeeded(&bench.deploy_package(&package, &[]));
    mentions(&said, &["install  package pls-router 1.0", "remove   the units in /etc/systemd/system"]);
    assert!(!bench.target.path("/etc/systemd/system/pls-router.service").exists());
    assert_eq!(bench.installed_package(), "installed 1.0");
    check(tcp.echo(b"after", ECHO_LIMIT));
    bench.assert_in_service();
}
