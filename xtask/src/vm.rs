//! `cargo xtask vm`: the tests of the BPF programs under the kernels that Debian has, in a virtual
//! machine; and those of the whole router on a machine with Debian 12.
//!
//! A program that this machine's verifier takes may be refused by an older one, and nothing but
//! that verifier can tell.

mod arm64;
mod image;
pub(crate) mod kernel;
pub(crate) mod machine;
mod table;
mod tools;

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::verb::Verb;
use crate::{system, toolchain, workspace};
use kernel::Kernel;
pub(crate) use tools::Tools;

pub(crate) const VERB: Verb = Verb {
    name: "vm",
    about: "run tests on other kernels and on a whole Debian 12, in a virtual machine",
    help: Some(HELP),
    run,
};

const HELP: &str = "\
Boots Debian's kernels in an emulated virtual machine, which needs no KVM, and runs the tests of
`cargo xtask test --only bpf` there: their verifiers accept the programs, and the results are the same.

usage: cargo xtask vm [--kernel SERIES,..] [--quick] [--packets N] [--seed S] [FILTER]
       cargo xtask vm --kernels
       cargo xtask vm --machine [--full] [--package FILE] [FILTER]
       cargo xtask vm --image
       cargo xtask vm --arm64 PROGRAM

  --kernel SERIES,..   the kernels: 6.1, 6.12 (both)
  --quick              only random packets: half a minute for each kernel instead of ten
  --packets N          the number of random packets (20000)
  --seed S             the seed of random packets; a failure prints it
  FILTER               only tests with this in their name

  --kernels            print a table of what loads, attaches and passes under each kernel that Debian has: the
                       packages are fetched from all of its releases

  --machine            run the tests of the whole router on a machine with Debian 12, systemd, sshd and
                       cloud-init in place of the router of the lab (root)
  --full               the long ones of them too
  --package FILE       install this .deb there (default: one of the program that tests use)
  --image              make the image of that machine (two minutes, once; root), and print where it is

  --arm64 PROGRAM      have this pls-router, a static one for aarch64, load and attach its programs in an emulated
                       arm64 machine

A kernel's package (30 MB) is fetched by apt-get into target/vm and unpacked there, not installed. So
are the packages of qemu (45 MB) and a few other programs if they are missing. None of this needs root.
";

/// The tests to run.
const TESTS: &[&str] = &["bpf_fuzz", "datapath"];
const QUICK_TESTS: &[&str] = &["bpf_fuzz"];
/// In an emulated machine a packet takes twenty times as long as here.
const PACKETS: u64 = 20_000;

/// The last line of the first process in the machine: the tests' exit code.
const LAST_LINE: &str = "vm: exit ";

/// Nothing there takes as long, unless it is asked for more packets.
const TIMEOUT_SECONDS: u64 = 2400;
/// The exit code of `timeout` when it had to end its command.
const TIMED_OUT: i32 = 124;

/// The only architecture whose kernels this knows to start.
const ARCHITECTURE: &str = "x86_64";

/// The task of one run.
#[derive(Clone, Debug, PartialEq)]
enum Task {
    /// The BPF programs under other kernels.
    Programs,
    /// The table of kernels.
    Table,
    /// The whole router on a machine.
    Machine,
    /// Nothing: the image of that machine is wanted.
    Image,
    /// This program for arm64.
    Arm64(PathBuf),
}

#[derive(Debug, PartialEq)]
struct Options {
    task: Task,
    full: bool,
    /// The package that the machine gets; `None`: one that is made here.
    package: Option<PathBuf>,
    kernels: Vec<Kernel>,
    quick: bool,
    packets: u64,
    seed: Option<u64>,
    filter: Option<OsString>,
}

fn parse(arguments: &[OsString]) -> Result<Options, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options {
        task: Task::Programs,
        full: false,
        package: None,
        kernels: kernel::ALL.to_vec(),
        quick: false,
        packets: PACKETS,
        seed: None,
        filter: None,
    };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("kernel") => {
                options.kernels = parser
                    .value()?
                    .parse_with(|list| list.split(',').map(Kernel::named).collect::<Result<_, _>>())?;
            }
            Long("kernels") if options.task == Task::Programs => options.task = Task::Table,
            Long("machine") if options.task == Task::Programs => options.task = Task::Machine,
            Long("image") if options.task == Task::Programs => options.task = Task::Image,
            Long("arm64") if options.task == Task::Programs => {
                options.task = Task::Arm64(parser.value()?.into());
            }
            Long("full") => options.full = true,
            Long("package") if options.task == Task::Machine => {
                options.package = Some(parser.value()?.into());
            }
            Long("quick") => options.quick = true,
            Long("packets") => options.packets = parser.value()?.parse()?,
            Long("seed") => options.seed = Some(parser.value()?.parse()?),
            Value(filter) if options.filter.is_none() => options.filter = Some(filter),
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected()),
        }
    }
    Ok(options)
}

fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let options = parse(arguments)?;
    if let Some(obstacle) = obstacle() {
        bail!("{obstacle}");
    }
    match options.task.clone() {
        Task::Programs => programs(options),
        Task::Table => table::print(&options),
        Task::Arm64(program) => arm64::try_program(&program),
        Task::Machine => machine::test(options.full, options.package.as_deref(), options.filter.as_deref()),
        Task::Image => {
            println!("{}", machine::image()?.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Runs the tests of the BPF programs under each kernel.
fn programs(options: Options) -> Result<ExitCode> {
    let tools = Tools::ready()?;
    toolchain::bpf()?;
    let tests = build(if options.quick { QUICK_TESTS } else { TESTS })?;
    let script = script(&tests, &options)?;
    let mut good = true;
    for kernel in options.kernels {
        eprintln!("\n== Linux {kernel}");
        // One that cannot be had, or dies, does not keep the next from its turn.
        good &= try_under(kernel, &tools, &tests, &script).unwrap_or_else(|error| {
            eprintln!("error: Linux {kernel}: {error:#}");
            false
        });
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the script in a machine with this kernel; whether it ended well.
fn try_under(kernel: Kernel, tools: &Tools, tests: &[Program], script: &str) -> Result<bool> {
    let files = kernel.files(tools)?;
    let image = image::build(&files, tools, tests, script)?;
    Ok(boot(tools, &files.image, &image)?.good)
}

/// Why no machine can be started here.
pub(crate) fn obstacle() -> Option<String> {
    if std::env::consts::ARCH != ARCHITECTURE {
        return Some(format!("virtual machines are made for {ARCHITECTURE} only"));
    }
    if system::find_program("apt-get").is_none() {
        return Some("the kernels are those of Debian's packages, and there is no apt-get here".to_owned());
    }
    None
}

/// A run of this verb for one kernel that takes half a minute, as a command whose output is that of
/// tests.
pub(crate) fn quick_run(kernel: Kernel, seed: Option<u64>) -> Result<Command> {
    // Not by its path: the tests of xtask may have compiled it anew meanwhile, and what runs here
    // is then no file any more (proc(5)).
    let mut command = Command::new("/proc/self/exe");
    command.args([VERB.name, "--quick", "--kernel", &kernel.to_string()]);
    if let Some(seed) = seed {
        command.args(["--seed", &seed.to_string()]);
    }
    Ok(command)
}

/// A program to run there: a test binary, or another.
struct Program {
    name: &'static str,
    binary: PathBuf,
}

/// Compiles tests of the router's package.
fn build(names: &[&'static str]) -> Result<Vec<Program>> {
    let mut command = workspace::cargo("test");
    command.args(["--package", "router-user", "--no-run", "--message-format=json-render-diagnostics"]);
    for name in names {
        command.args(["--test", name]);
    }
    eprintln!("  $ {}", system::display(&command));
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "the tests do not compile");
    let messages = String::from_utf8_lossy(&output.stdout);
    names.iter().map(|&name| Ok(Program { name, binary: executable(&messages, name)? })).collect()
}

/// The path at which cargo says that it has put a test binary, which it names after the test.
fn executable(messages: &str, name: &str) -> Result<PathBuf> {
    let paths = messages.split("\"executable\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    let prefix = format!("{name}-");
    let path = paths
        .map(Path::new)
        .find(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&prefix)));
    path.map(Path::to_owned).with_context(|| format!("cargo does not say where the test {name} is"))
}

/// Returns the script that the machine runs.
fn script(tests: &[Program], options: &Options) -> Result<String> {
    let filter = options.filter.as_deref().unwrap_or_default();
    let filter = quoted(filter.to_str().context("the filter is no text")?);
    let root = workspace::root();
    let root = quoted(root.to_str().context("the path of the repository is no text")?);
    let mut script = format!("cd {root} || exit 1\nexport FUZZ_PACKETS={}\n", options.packets);
    if let Some(seed) = options.seed {
        script += &format!("export FUZZ_SEED={seed}\n");
    }
    script += "bad=0\n";
    for test in tests {
        script += &format!("{} {filter} || bad=1\n", image::test_path(test.name));
    }
    script += "exit $bad\n";
    Ok(script)
}

/// A word of a shell script.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The end of a machine.
struct Ran {
    /// `true` if its script ended well.
    good: bool,
    /// Its output.
    lines: Vec<String>,
}

/// Starts the machine and shows its output.
fn boot(tools: &Tools, kernel: &Path, image: &Path) -> Result<Ran> {
    // If `timeout` is killed, its children end as well.
    const DIE_WITH_PARENT: [&str; 2] = ["--pdeathsig", "KILL"];
    let mut command = tools.command("setpriv")?;
    command.args(DIE_WITH_PARENT).args(["timeout", "--foreground", &TIMEOUT_SECONDS.to_string()]);
    command.args(tools.words("setpriv")?).args(DIE_WITH_PARENT).args(tools.qemu()?);
    let emulation = tools.emulation;
    command.args(emulation.arguments);
    command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    // The machine ends in every case: a panic would reboot it, which is not allowed. A kernel
    // warning is as bad.
    let rest = "net.ifnames=0 loglevel=1 oops=panic panic_on_warn=1 panic=-1";
    command.arg("-append").arg(format!("console={} {rest}", emulation.console));
    // A NIC that leads nowhere, and nothing to boot from it.
    command.args(["-netdev", "hubport,id=nic,hubid=0", "-device", "virtio-net-pci,netdev=nic,romfile="]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(image);
    eprintln!("  $ {}", system::display(&command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the virtual machine")?;
    let output = child.stdout.take().context("qemu has no standard output")?;
    let mut terminal = std::io::stdout();
    let (mut code, mut lines) = (None, Vec::new());
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read what the machine says")?;
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        // A closed standard output must not change the exit code.
        _ = terminal.write_all(line).and_then(|()| terminal.write_all(b"\n"));
        let line = String::from_utf8_lossy(line);
        code = line.strip_prefix(LAST_LINE).map(str::to_owned).or(code);
        lines.push(line.into_owned());
    }
    let status = child.wait().context("lost qemu")?;
    match code {
        Some(code) => Ok(Ran { good: code == "0", lines }),
        None if status.code() == Some(TIMED_OUT) => {
            bail!("the machine was stopped after {TIMEOUT_SECONDS} s; fewer --packets take less time")
        }
        None => bail!("the machine ended before its tests did ({status}); what it said last is above"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Options, lexopt::Error> {
        parse(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn every_kernel_by_default() {
        let options = parsed(&[]).unwrap();
        assert_eq!((options.kernels.as_slice(), options.quick), (kernel::ALL, false));
        let one = parsed(&["--kernel=6.1", "--quick", "--seed", "7", "tcp::"]).unwrap();
        assert_eq!((one.kernels.len(), one.quick, one.seed), (1, true, Some(7)));
        assert_eq!(one.filter, Some("tcp::".into()));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let error = parsed(&["--kernel", "6.1,5.15"]).unwrap_err().to_string();
        assert!(error.contains("no kernel `5.15`; there are 6.1, 6.12"), "{error}");
        parsed(&["--fast"]).unwrap_err();
    }

    #[test]
    fn cargo_says_where_a_test_is() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
                        {\"executable\":\"/t/deps/bpf_fuzz-0f\",\"fresh\":true}\n{\"executable\":\"/t/deps/datapath-1a\"}\n";
        assert_eq!(executable(messages, "datapath").unwrap(), Path::new("/t/deps/datapath-1a"));
        executable(messages, "cli").unwrap_err();
    }

    #[test]
    fn a_filter_is_one_word() {
        let tests = [Program { name: "datapath", binary: PathBuf::new() }];
        let script = |filter| script(&tests, &parsed(&[filter]).unwrap()).unwrap();
        assert!(script("tcp::a_syn").contains("/tests/datapath 'tcp::a_syn' || bad=1\n"));
        assert!(script("a'; reboot").contains(r"/tests/datapath 'a'\''; reboot' ||"));
    }
}
