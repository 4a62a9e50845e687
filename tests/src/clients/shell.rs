//! ssh and scp.

use anyhow::{Context as _, Result, ensure};

use super::{SHELL_PORT, finish};
use crate::{
    Lab,
    addresses::{FIREWALL_PUBLIC, TOOLS},
    client::sha256,
    command,
    servers::Shell,
    witness::Witness,
};

/// Runs ssh or scp on the client.
fn run(lab: &Lab, shell: &Shell, program: &str, args: &[&str]) -> Result<String> {
    let mut command = lab.hosts.serverless.command(program)?;
    command::run(command.arg("-F").arg(shell.config()).args(args))
}

/// Runs commands, exchanges single lines, and copies a file there and back.
pub fn commands_run_and_files_are_copied(lab: &Lab) -> Result<()> {
    let shell = Shell::start(lab, SHELL_PORT)?;
    let witness = Witness::start(lab)?;

    let connection = run(lab, &shell, "ssh", &[Shell::HOST, "echo $SSH_CONNECTION"])?;
    let words: Vec<&str> = connection.split_whitespace().collect();
    let (client, server) = (FIREWALL_PUBLIC.to_string(), TOOLS.to_string());
    let as_wanted = matches!(*words, [from, _, to, "22"] if from == client && to == server);
    ensure!(as_wanted, "the server's end of the connection is {connection}");

    // Every line is answered on its own, so that there are many small packets.
    let lines: String = (0..500).map(|number| format!("line {number}\n")).collect();
    let mut cat = lab.hosts.serverless.command("ssh")?;
    cat.arg("-F").arg(shell.config()).args([Shell::HOST, "while read line; do echo \"$line\"; done"]);
    ensure!(command::run_with_input(&mut cat, &lines)? == lines, "the lines came back otherwise");

    let wanted = sha256(&lab.large_file())?;
    let there = format!("{}/copy", Shell::DIRECTORY);
    let remote = format!("{}:{there}", Shell::HOST);
    let back = lab.state().path("tmp/back").display().to_string();
    run(lab, &shell, "scp", &["-q", &lab.large_file().display().to_string(), &remote])?;
    let sum = run(lab, &shell, "ssh", &[Shell::HOST, "sha256sum", &there])?;
    let sum = sum.split(' ').next().context("sha256sum said nothing")?;
    ensure!(sum == wanted, "the copy on the server differs");
    run(lab, &shell, "scp", &["-q", &remote, &back])?;
    ensure!(sha256(back.as_ref())? == wanted, "what was copied back differs");
    finish(witness)
}
