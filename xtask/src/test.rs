//! `cargo xtask test`: all checks, and one line that sums them up.

mod azure;
mod columns;
mod fuzz;
mod libtest;
mod memory;
mod parts;
mod report;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use bpf_build::{Action, Toolchain};

use crate::dist::Architecture;
use crate::packages::{self, Shortfall, Use};
use crate::verb::Verb;
use crate::{lab, system, toolchain, vm, workspace};
use report::{Outcome, Report};

pub(crate) const VERB: Verb = Verb {
    name: "test",
    about: "run all tests and checks (as root, for those in namespaces)",
    help: Some(HELP),
    run,
};

const HELP: &str = "\
Runs all tests and checks, continues after a failure, and ends with the line `N passed, N failed, N skipped`.

usage: cargo xtask test [--only GROUP,..] [--fuzz-seconds N] [--sequences N] [--packets N] [--seed S]
                        [--full] [--soak MINUTES] [FILTER]

  FILTER               only tests with this in their name (in host, memory, bpf, net and vm)
  --fuzz-seconds N     the time for each fuzz target (20)
  --sequences N        the number of packet sequences that are sent through the router and through the
                       kernel's own NAT, to compare them (2000); 0: until interrupted, with a new seed
  --packets N          the number of random packets for the BPF programs (1000000)
  --seed S             the seed of the first sequence and of random packets; a failure prints the --seed
                       (and --sequences 1) that repeats it
  --soak MINUTES       a soak after the other groups (alone with --only soak): 200,000 sessions and more,
                       lost and reordered packets, a daemon that is killed again and again
  --full               long tests too: more that can happen to a Debian 12 with the router
  --only GROUP,..      only these groups, of
      fmt       the formatting, that comments and pages have at most 100 columns, and cargo-deny's checks
                of dependencies, if it is installed
      clippy    the lints; warnings are errors
      doc       the documentation; warnings are errors
      azure     the Azure templates: Terraform against the providers' schemas, offline
      host      tests of pure code
      memory    shared memory: models of all interleavings, and the code under Miri
      bpf       the BPF programs on single packets (BPF_PROG_TEST_RUN); needs root
      dist      the Debian package: what is in it, installing, upgrading and removing it
      net       the router in network namespaces, with real traffic; needs root
      fuzz      the fuzz targets
      vm        in virtual machines: the BPF programs on random packets under older kernels
                (`cargo xtask vm` runs all tests of bpf there), and the package on a Debian 12
      soak      the soak of --soak; needs root

The first run installs and compiles everything, and takes about half an hour on two cores. Tests in
namespaces, in virtual machines and under Miri take most of that; without them (--only) it is a few minutes.
";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Group {
    Fmt,
    Clippy,
    Doc,
    Azure,
    Host,
    Memory,
    Bpf,
    Dist,
    Net,
    Fuzz,
    Vm,
    Soak,
}

const GROUPS: &[(&str, Group)] = &[
    ("fmt", Group::Fmt),
    ("clippy", Group::Clippy),
    ("doc", Group::Doc),
    ("azure", Group::Azure),
    ("host", Group::Host),
    ("memory", Group::Memory),
    ("bpf", Group::Bpf),
    ("dist", Group::Dist),
    ("net", Group::Net),
    ("fuzz", Group::Fuzz),
    ("vm", Group::Vm),
    ("soak", Group::Soak),
];

/// The packages that compile for the host, by what is done with them. Always one at a time: in a
/// build of all, the features that one package asks of a dependency would hide that another forgot
/// to ask.
const LINTED: &[&str] = &[
    "bpf-build",
    "router-common",
    "router-user",
    "cli-documents",
    "harness",
    "harness-macros",
    "lab",
    "xtask",
    "fuzz",
];
const DOCUMENTED: &[&str] =
    &["bpf-build", "router-common", "router-user", "cli-documents", "harness", "lab", "xtask"];
const HOST_TESTED: &[&str] =
    &["bpf-build", "router-common", "router-user", "cli-documents", "harness", "xtask"];

#[derive(Debug, PartialEq)]
struct Options {
    groups: Vec<Group>,
    fuzz_time: Duration,
    /// The number of sequences; the test's default if `None`.
    sequences: Option<u64>,
    /// The number of packets; the test's default if `None`.
    packets: Option<u64>,
    seed: Option<u64>,
    /// `true` if long tests are run too.
    full: bool,
    /// The duration of the soak test in minutes; without it there is none.
    soak: Option<f64>,
    filter: Option<OsString>,
}

fn parse(arguments: &[OsString]) -> Result<Options, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options {
        groups: GROUPS.iter().map(|(_, group)| *group).collect(),
        fuzz_time: Duration::from_secs(20),
        sequences: None,
        packets: None,
        seed: None,
        full: false,
        soak: None,
        filter: None,
    };
    let mut only = false;
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("only") => {
                options.groups = parser.value()?.parse_with(groups)?;
                only = true;
            }
            Long("fuzz-seconds") => options.fuzz_time = Duration::from_secs(parser.value()?.parse()?),
            Long("sequences") => options.sequences = Some(parser.value()?.parse()?),
            Long("packets") => options.packets = Some(parser.value()?.parse()?),
            Long("seed") => options.seed = Some(parser.value()?.parse()?),
            Long("full") => options.full = true,
            Long("soak") => options.soak = Some(parser.value()?.parse_with(minutes)?),
            Value(filter) if options.filter.is_none() => options.filter = Some(filter),
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected()),
        }
    }
    match (options.soak, only && options.groups.contains(&Group::Soak)) {
        (None, true) => Err("`--only soak` needs `--soak MINUTES`".into()),
        (None, false) => {
            options.groups.retain(|group| *group != Group::Soak);
            Ok(options)
        }
        (Some(_), _) if only && !options.groups.contains(&Group::Soak) => {
            Err("`--soak` is not among the groups of `--only`".into())
        }
        (Some(_), _) => Ok(options),
    }
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|error| format!("{error}"))?;
    // A week is a typing error, and more than `Duration` takes would be one of ours.
    if minutes > 0.0 && minutes < 10_080.0 {
        Ok(minutes)
    } else {
        Err("between 0 and 10080 minutes".to_owned())
    }
}

fn groups(list: &str) -> Result<Vec<Group>, String> {
    let one = |name: &str| {
        let found = GROUPS.iter().find(|(known, _)| *known == name);
        found.map(|(_, group)| *group).ok_or_else(|| {
            let known: Vec<_> = GROUPS.iter().map(|(name, _)| *name).collect();
            format!("no group `{name}`; there are {}", known.join(", "))
        })
    };
    list.split(',').map(one).collect()
}

fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let options = parse(arguments)?;
    let mut report = Report::default();
    let prepared = prepare(&options, &mut report);
    // In the order of GROUPS, which is that of the time they take: what fails soon is seen soon.
    for (_, group) in GROUPS.iter().filter(|(_, group)| options.groups.contains(group)) {
        match group {
            Group::Fmt => {
                check(&mut report, "fmt", workspace::cargo("fmt").args(["--all", "--check"]));
                columns::run(&mut report, "columns");
                deny(&mut report);
            }
            Group::Clippy => clippy(&mut report, &prepared),
            Group::Doc => doc(&mut report),
            Group::Azure => {
                // Only what a build cannot do without is a failure of this step.
                let router = build_daemon(&mut report, "azure").then(daemon);
                azure::run(&mut report, router.as_deref());
            }
            Group::Host => host(&mut report, &options),
            Group::Memory => memory::run(&mut report, options.filter.as_deref()),
            Group::Bpf => in_kernel(&mut report, &options, Group::Bpf, "bpf"),
            Group::Dist => dist(&mut report, &options),
            Group::Net => in_kernel(&mut report, &options, Group::Net, "net"),
            Group::Fuzz => match prepared.obstacle(Use::Fuzz) {
                Some(obstacle) => report.skip("fuzz", &obstacle),
                None => fuzz::run(&mut report, options.fuzz_time),
            },
            Group::Vm => {
                other_kernels(&mut report, &options);
                machine(&mut report, &options);
            }
            Group::Soak => soak(&mut report, &options),
        }
    }
    print!("{report}");
    Ok(if report.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The prerequisites of tests.
struct Prepared {
    toolchain: Option<Toolchain>,
    shortfalls: Vec<Shortfall>,
}

impl Prepared {
    /// Why something cannot be done that needs the packages for `usage`.
    fn obstacle(&self, usage: Use) -> Option<String> {
        let mut missing = self.shortfalls.iter().filter(|shortfall| shortfall.is_for(usage));
        missing.next().map(|shortfall| format!("there is no {shortfall}"))
    }
}

/// Installs the packages that the groups need. A package that cannot be installed is counted, and
/// the rest still runs.
fn prepare(options: &Options, report: &mut Report) -> Prepared {
    let wants = |groups: &[Group]| groups.iter().any(|group| options.groups.contains(group));
    let mut uses = Vec::new();
    if wants(&[Group::Bpf, Group::Net, Group::Vm, Group::Soak]) && system::is_root() {
        uses.push(Use::Lab);
    }
    if wants(&[Group::Net]) && system::is_root() {
        // Of the bench: iptables, whose rules `import` translates.
        uses.extend([Use::Deploy, Use::Clients, Use::Bench]);
    } else if wants(&[Group::Vm]) && system::is_root() {
        uses.push(Use::Deploy);
        if options.full {
            uses.push(Use::Clients);
        }
    }
    if wants(&[Group::Dist]) && system::is_root() {
        uses.extend([Use::Dist, Use::Machine]);
    }
    if wants(&[Group::Fuzz, Group::Clippy]) {
        uses.push(Use::Fuzz);
    }
    if wants(&[Group::Azure]) && system::is_root() {
        uses.push(Use::Azure);
    }
    let start = Instant::now();
    let shortfalls = packages::install(&uses);
    if !shortfalls.is_empty() {
        report.add("packages", start.elapsed(), without(&shortfalls));
    }
    let mut toolchain = None;
    if wants(&[
        Group::Clippy,
        Group::Doc,
        Group::Azure,
        Group::Host,
        Group::Bpf,
        Group::Dist,
        Group::Net,
        Group::Vm,
        Group::Soak,
    ]) {
        let start = Instant::now();
        match toolchain::bpf() {
            Ok(found) => toolchain = Some(found),
            Err(error) => {
                eprintln!("error: {error:#}");
                report.add(
                    "toolchain",
                    start.elapsed(),
                    Outcome::failed("it could not be installed; see above"),
                );
            }
        }
    }
    Prepared { toolchain, shortfalls }
}

/// The outcome of packages that could not be installed: without one of the lab's the important
/// tests do not run, which is a failure; without another the tests that need it are skipped.
fn without(shortfalls: &[Shortfall]) -> Outcome {
    let mut outcome = Outcome::default();
    for shortfall in shortfalls {
        let (count, word) = if shortfall.is_for(Use::Lab) {
            (&mut outcome.counts.failed, "failed")
        } else {
            (&mut outcome.counts.skipped, "skipped")
        };
        *count += 1;
        outcome.notes.push(format!("{word}: {shortfall}"));
    }
    outcome
}

/// Runs a command that either passes or fails as a whole.
fn check(report: &mut Report, name: &str, command: &mut Command) {
    report::title(name);
    let start = Instant::now();
    let outcome = match system::run(command) {
        Ok(()) => Outcome::passed(),
        Err(error) => Outcome::failed(format!("{error:#}")),
    };
    report.add(name, start.elapsed(), outcome);
}

/// Checks dependencies by `deny.toml`. cargo-deny takes minutes to compile, so it is not installed:
/// the licences of what is shipped are checked without it, by a test of `dist`.
fn deny(report: &mut Report) {
    const NAME: &str = "deny";
    if system::find_program("cargo-deny").is_none() {
        return report.skip(NAME, "there is no cargo-deny (`cargo install cargo-deny --locked`)");
    }
    check(report, NAME, workspace::cargo("deny").args(["check", "bans", "licenses", "sources"]));
}

fn clippy(report: &mut Report, prepared: &Prepared) {
    for package in LINTED {
        let step = format!("clippy {package}");
        if let ("fuzz", Some(obstacle)) = (*package, prepared.obstacle(Use::Fuzz)) {
            report.skip(&step, &obstacle);
            continue;
        }
        let mut command = workspace::cargo("clippy");
        command.args(["--package", package, "--all-targets", "--", "-Dwarnings"]);
        check(report, &step, &mut command);
    }
    let name = "clippy router-ebpf and labtools";
    let Some(toolchain) = &prepared.toolchain else {
        return report.skip(name, "there is no toolchain for BPF");
    };
    if let Err(error) = toolchain::clippy_for(toolchain) {
        return report.skip(name, &format!("{error:#}"));
    }
    match bpf_build::cargo(toolchain, Action::Clippy, &workspace::bpf_target_dir()) {
        Ok(mut command) => {
            // How `cargo clippy` hands lint levels to its driver.
            command.env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
            command.args(["--package", "router-ebpf", "--package", "labtools"]);
            check(report, name, command.current_dir(workspace::root()));
        }
        Err(error) => report.add(name, Duration::ZERO, Outcome::failed(format!("{error:#}"))),
    }
}

fn doc(report: &mut Report) {
    for package in DOCUMENTED {
        let mut command = workspace::cargo("doc");
        command.args(["--no-deps", "--package", package]).env("RUSTDOCFLAGS", "-Dwarnings");
        check(report, &format!("doc {package}"), &mut command);
    }
}

fn host(report: &mut Report, options: &Options) {
    for package in HOST_TESTED {
        let name = format!("host {package}");
        for (targets, note) in host_targets(package).iter().zip(["", ", examples"]) {
            let mut command = test_command(package);
            let step = format!("{name}{note}");
            libtest::run(report, &step, command.args(targets), options.filter.as_deref());
        }
    }
}

/// The targets of a package's host tests, as arguments of cargo, for one command after the other:
/// cargo has no way to leave a test binary out, so that the others are named where there is one of
/// another group; and examples in documentation are then a command of their own.
fn host_targets(package: &str) -> Vec<Vec<String>> {
    let (host, elsewhere): (Vec<_>, Vec<_>) =
        test_targets(package).into_iter().partition(|target| group_of(package, target) == Group::Host);
    if elsewhere.is_empty() {
        return vec![Vec::new()];
    }
    let mut binaries = vec!["--bins".to_owned()];
    binaries.extend(host.into_iter().flat_map(|target| ["--test".to_owned(), target]));
    // Cargo refuses to be asked for a library where there is none.
    if !workspace::folder(package).join("src/lib.rs").is_file() {
        return vec![binaries];
    }
    binaries.push("--lib".to_owned());
    vec![binaries, vec!["--doc".to_owned()]]
}

/// The package. Its tests need more of a machine than a compiler, as those below do, but no kernel.
fn dist(report: &mut Report, options: &Options) {
    const NAME: &str = "dist";
    // The program in the test's packages is static, as what is shipped.
    let target = Architecture::native().and_then(|native| toolchain::add_target(native.target()));
    if let Err(error) = target {
        return report.skip(NAME, &format!("{error:#}"));
    }
    let mut command = test_command("xtask");
    libtest::run(report, NAME, command.args(["--test", "dist"]), options.filter.as_deref());
}

/// The tests that need root and this kernel, by the package they are in.
fn in_kernel(report: &mut Report, options: &Options, group: Group, name: &str) {
    if let Some(obstacle) = obstacle() {
        return report.skip(name, &obstacle);
    }
    let mut found = false;
    for package in ["router-user", "lab"] {
        let targets: Vec<_> =
            test_targets(package).into_iter().filter(|target| group_of(package, target) == group).collect();
        if targets.is_empty() {
            continue;
        }
        found = true;
        let step = format!("{name} {package}");
        let mut command = test_command(package);
        if package == "lab" {
            if !build_other_layout(report, &step) || !build_daemon(report, &step) {
                continue;
            }
            command.env(lab::ROUTER_VARIABLE, daemon());
            for (variable, value) in [("LAB_SEQUENCES", options.sequences), ("LAB_SEED", options.seed)] {
                if let Some(value) = value {
                    command.env(variable, value.to_string());
                }
            }
        }
        // Read by router-user/tests/bpf_fuzz.
        for (variable, value) in [("FUZZ_PACKETS", options.packets), ("FUZZ_SEED", options.seed)] {
            if let Some(value) = value {
                command.env(variable, value.to_string());
            }
        }
        for target in targets {
            command.arg("--test").arg(target);
        }
        libtest::run(report, &step, &mut command, options.filter.as_deref());
        if package == "lab" {
            // Tests that need root are marked as ignored.
            let arguments = [OsStr::new("--include-ignored")].into_iter().chain(options.filter.as_deref());
            let mut command = test_command(package);
            libtest::run(report, &format!("{step}, inside"), command.args(["--lib", "--bins"]), arguments);
        }
    }
    if !found {
        report.skip(name, "there are no such tests");
    }
}

/// The programs under kernels that are not this one.
fn other_kernels(report: &mut Report, options: &Options) {
    if let Some(obstacle) = vm::obstacle() {
        return report.skip("vm", &obstacle);
    }
    if let Err(error) = vm::Tools::ready() {
        return report.skip("vm", &format!("{error:#}"));
    }
    let mut steps = Vec::new();
    for kernel in vm::kernel::ALL {
        let name = format!("vm Linux {kernel}");
        // Which kernels a release of Debian has is its own affair.
        if let Err(error) = kernel.package() {
            report.skip(&name, &format!("{error:#}"));
            continue;
        }
        match vm::quick_run(*kernel, options.seed) {
            Ok(command) => steps.push((name, command)),
            Err(error) => report.add(&name, Duration::ZERO, Outcome::failed(format!("{error:#}"))),
        }
    }
    // At the same time: one packet after the other keeps one CPU busy.
    libtest::run_together(report, steps, options.filter.as_deref());
}

/// The whole router on a machine.
fn machine(report: &mut Report, options: &Options) {
    const NAME: &str = "vm Debian 12";
    if let Some(obstacle) = obstacle() {
        return report.skip(NAME, &obstacle);
    }
    if !build_daemon(report, NAME) {
        return;
    }
    let start = Instant::now();
    // Without a mirror of Debian there is no image.
    let place = match vm::machine::image() {
        Ok(place) => place,
        Err(error) => return report.skip(NAME, &format!("{error:#}")),
    };
    let command = vm::machine::package(&daemon())
        .and_then(|package| vm::machine::tests(&place, &package, options.full));
    let mut command = match command {
        Ok(command) => command,
        Err(error) => {
            let outcome = Outcome::failed(format!("there is no package to install: {error:#}"));
            return report.add(NAME, start.elapsed(), outcome);
        }
    };
    let arguments = vm::machine::arguments(options.full).into_iter().chain(options.filter.as_deref());
    libtest::run(report, NAME, &mut command, arguments);
    print!("{}", vm::machine::scenes(&place));
}

/// Why nothing can be tested in namespaces here.
fn obstacle() -> Option<String> {
    if system::is_root() {
        system::check_kernel().err().map(|error| format!("{error:#}"))
    } else {
        Some("network namespaces and BPF programs need root".to_owned())
    }
}

/// Builds the daemon with another layout of its maps, beside where [`build_daemon`] puts the usual
/// one: the two are built in turn at the same place, so that they share all dependencies.
fn build_other_layout(report: &mut Report, step: &str) -> bool {
    report::title("the daemon with another layout, for the tests");
    let mut build = workspace::cargo("build");
    build.args(["--package", "router-user", "--bin", "pls-router", "--features", "other-layout"]);
    let start = Instant::now();
    let place = daemon().with_file_name(lab::OTHER_LAYOUT);
    let built = system::run(&mut build).and_then(|()| {
        fs::copy(daemon(), &place).with_context(|| format!("cannot write {}", place.display())).map(drop)
    });
    if let Err(error) = &built {
        report.add(step, start.elapsed(), Outcome::failed(format!("{error:#}")));
    }
    built.is_ok()
}

fn daemon() -> PathBuf {
    workspace::target_dir().join("debug/pls-router")
}

/// Builds the daemon for tests, which are told its binary: cargo does not build it for another
/// package's. A failure is that of `step`.
fn build_daemon(report: &mut Report, step: &str) -> bool {
    report::title("the daemon, for the tests");
    let mut build = workspace::cargo("build");
    let start = Instant::now();
    let built = system::run(build.args(["--package", "router-user", "--bin", "pls-router"]));
    if let Err(error) = &built {
        report.add(step, start.elapsed(), Outcome::failed(format!("{error:#}")));
    }
    built.is_ok()
}

fn soak(report: &mut Report, options: &Options) {
    const NAME: &str = "soak";
    let Some(minutes) = options.soak else { return };
    if let Some(obstacle) = obstacle() {
        return report.skip(NAME, &obstacle);
    }
    if !build_daemon(report, NAME) {
        return;
    }
    let mut command = workspace::cargo("run");
    command.args(["--package", "lab", "--bin", "soak", "--", "--minutes", &minutes.to_string()]);
    if let Some(seed) = options.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    check(report, NAME, command.env(lab::ROUTER_VARIABLE, daemon()));
}

fn test_command(package: &str) -> Command {
    let mut command = workspace::cargo("test");
    command.args(["--no-fail-fast", "--package", package]);
    command
}

/// Returns the group that a test binary of a package belongs to.
fn group_of(package: &str, target: &str) -> Group {
    match (package, target) {
        ("router-user", "bpf_fuzz" | "datapath") => Group::Bpf,
        ("lab", vm::machine::TARGET) => Group::Vm,
        ("xtask", "dist") => Group::Dist,
        ("lab", _) => Group::Net,
        _ => Group::Host,
    }
}

/// The names of the test binaries that cargo finds by itself: files, and directories with a
/// `main.rs`.
fn test_targets(package: &str) -> Vec<String> {
    let Ok(entries) = workspace::folder(package).join("tests").read_dir() else { return Vec::new() };
    let mut names: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").is_file()
        })
        .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

/// The triple of this machine, as cargo prints it.
fn host_triple() -> Result<String> {
    let mut cargo = workspace::cargo("--version");
    let output = cargo.arg("--verbose").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| anyhow!("`cargo --version --verbose` does not name the host"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use harness::packages::named;

    use super::*;

    #[test]
    fn only_a_package_of_the_lab_is_a_failure() {
        let shortfall = |name| Shortfall::new(named(name).unwrap(), "it would remove another".to_owned());
        let outcome = without(&[shortfall("tcpdump"), shortfall("coturn"), shortfall("g++")]);
        assert_eq!((outcome.counts.failed, outcome.counts.skipped), (1, 2));
        assert!(
            outcome.notes[0].starts_with("failed: tcpdump (")
                && outcome.notes[1].starts_with("skipped: coturn (")
        );
        assert!(outcome.notes[2].ends_with(": it would remove another"), "{:?}", outcome.notes);
    }

    #[test]
    fn what_needs_a_missing_package_is_skipped_for_that_reason() {
        let shortfalls = vec![Shortfall::new(named("g++").unwrap(), "there is no mirror".to_owned())];
        let prepared = Prepared { toolchain: None, shortfalls };
        assert_eq!(
            prepared.obstacle(Use::Fuzz).unwrap(),
            "there is no g++ (compiles libFuzzer): there is no mirror"
        );
        assert_eq!(prepared.obstacle(Use::Clients), None);
    }

    fn parsed(arguments: &[&str]) -> Result<Options, lexopt::Error> {
        parse(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn all_groups_by_default() {
        let options = parsed(&[]).unwrap();
        assert_eq!(options.groups.len(), GROUPS.len() - 1);
        assert!(!options.groups.contains(&Group::Soak));
        assert_eq!(options.fuzz_time, Duration::from_secs(20));
        assert_eq!((options.sequences, options.packets, options.seed), (None, None, None));
        assert_eq!(options.filter, None);
    }

    #[test]
    fn sequences_and_seed() {
        let options = parsed(&["--sequences", "0", "--seed=18446744073709551615"]).unwrap();
        assert_eq!((options.sequences, options.seed), (Some(0), Some(u64::MAX)));
        assert_eq!(parsed(&["--packets=5000"]).unwrap().packets, Some(5000));
        parsed(&["--seed", "-1"]).unwrap_err();
    }

    #[test]
    fn a_soak_is_asked_for() {
        let after_all = parsed(&["--soak", "2"]).unwrap();
        assert_eq!((after_all.soak, after_all.groups.last()), (Some(2.0), Some(&Group::Soak)));
        assert_eq!(after_all.groups.len(), GROUPS.len());
        let alone = parsed(&["--soak=0.5", "--only=soak"]).unwrap();
        assert_eq!((alone.soak, alone.groups), (Some(0.5), vec![Group::Soak]));
        let error = parsed(&["--only", "soak"]).unwrap_err().to_string();
        assert!(error.contains("`--soak MINUTES`"), "{error}");
        for nonsense in
            [&["--soak", "2", "--only", "net"][..], &["--soak", "0"], &["--soak", "NaN"], &["--soak", "long"]]
        {
            parsed(nonsense).unwrap_err();
        }
    }

    #[test]
    fn groups_time_and_filter() {
        let options = parsed(&["--only", "host,fuzz", "nat", "--fuzz-seconds=3"]).unwrap();
        assert_eq!(options.groups, [Group::Host, Group::Fuzz]);
        assert_eq!(options.fuzz_time, Duration::from_secs(3));
        assert_eq!(options.filter, Some("nat".into()));
    }

    #[test]
    fn every_test_binary_has_its_group() {
        let packages: BTreeSet<_> = LINTED.iter().copied().collect();
        let found: Vec<_> = packages
            .into_iter()
            .flat_map(|package| {
                test_targets(package).into_iter().map(move |target| {
                    let group = group_of(package, &target);
                    (package, target, group)
                })
            })
            .collect();
        let found: Vec<_> =
            found.iter().map(|(package, target, group)| (*package, target.as_str(), *group)).collect();
        assert_eq!(
            found,
            [
                ("harness", "outcomes", Group::Host),
                ("lab", "clients", Group::Net),
                ("lab", "deploy", Group::Net),
                ("lab", "differential", Group::Net),
                ("lab", "machine", Group::Vm),
                ("lab", "net", Group::Net),
                ("lab", "soak", Group::Net),
                ("router-common", "rewrite", Group::Host),
                ("router-user", "bpf_fuzz", Group::Bpf),
                ("router-user", "cli", Group::Host),
                ("router-user", "config", Group::Host),
                ("router-user", "datapath", Group::Bpf),
                ("router-user", "guides", Group::Host),
                ("xtask", "dist", Group::Dist),
                ("xtask", "docs", Group::Host),
                ("xtask", "setup", Group::Host),
            ]
        );
    }

    #[test]
    fn no_library_is_asked_for_where_there_is_none() {
        assert_eq!(host_targets("router-common"), [[""; 0]]);
        assert_eq!(host_targets("xtask"), [["--bins", "--test", "docs", "--test", "setup"]]);
        let [binaries, examples] = &host_targets("router-user")[..] else { panic!("two commands") };
        assert!(binaries.contains(&"--lib".to_owned()), "{binaries:?}");
        assert_eq!(examples[..], ["--doc"]);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let error = parsed(&["--only", "host,tests"]).unwrap_err().to_string();
        assert!(error.contains("no group `tests`; there are fmt, clippy"), "{error}");
        parsed(&["--fuzz-seconds", "long"]).unwrap_err();
        parsed(&["one", "two"]).unwrap_err();
        parsed(&["--fast"]).unwrap_err();
    }
}
