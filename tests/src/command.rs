//! Running programs to their end, with errors that say which command failed and how.

use std::{
    ffi::OsStr,
    io::Write as _,
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context, Error, Result, bail};
use harness::packages::{self, Absent};

use crate::interrupt;

/// The command line as one would type it, for messages.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Starts a command.
pub(crate) fn spawn(command: &mut Command) -> Result<Child> {
    let _running = interrupt::gate();
    command.spawn().map_err(|error| {
        // The error may be another missing file, since the `pre_exec` closure runs before the
        // program.
        let program = command.get_program().to_str().filter(|name| packages::find_program(name).is_none());
        match program.and_then(packages::with_program) {
            Some(package) => Error::from(Absent(package)),
            None => Error::from(error),
        }
        .context(format!("cannot run `{}`", line(command)))
    })
}

/// Fails, with what to do, unless a package of the table is there: for programs that others start,
/// as scripts do.
pub fn require(package: &str) -> Result<()> {
    let known = packages::named(package);
    let known = known.with_context(|| format!("{package} is not in the table of packages"))?;
    if known.sign.is_there() { Ok(()) } else { Err(Absent(known).into()) }
}

/// Runs `command` to its end and returns its output, for any exit status.
pub fn output(command: &mut Command) -> Result<Output> {
    feed(command, None)
}

/// Runs `command` to its end and returns what it wrote to standard output; a failure's error has
/// its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    succeeded(command, output)
}

/// As [`run`], with `input` on standard input. The error numbers the input's lines, since tools
/// name them by number.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let output = feed(command, Some(input))?;
    succeeded(command, output).with_context(|| {
        let numbered = input.lines().zip(1..).map(|(line, number)| format!("{number:4} {line}"));
        format!("with this input:\n{}", numbered.collect::<Vec<_>>().join("\n"))
    })
}

fn feed(command: &mut Command, input: Option<&str>) -> Result<Output> {
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command)?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A program that ends before it has read everything says why on standard error.
        let _closed = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().with_context(|| format!("lost `{}`", line(command)))
}

fn succeeded(command: &Command, output: Output) -> Result<String> {
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        // What a command has for programs is on its standard output, its refusal as well.
        let said = if stderr.trim().is_empty() { String::from_utf8_lossy(&output.stdout) } else { stderr };
        bail!("`{}` failed ({}): {}", line(command), output.status, said.trim());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` wrote something else than text", line(command)))
}
