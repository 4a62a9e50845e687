//! git over HTTPS.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::finish;
use crate::{Lab, addresses::ALLOWED_NAME, client::sha256, command, servers::Git, witness::Witness};

/// Runs git on the client, with nothing of this machine's or its user's settings.
fn git(lab: &Lab, directory: &Path, args: &[&str]) -> Result<String> {
    let mut git = lab.hosts.serverless.command("git")?;
    let path = std::env::var_os("PATH").context("there is no PATH")?;
    git.env_clear().env("PATH", path).env("HOME", lab.state().path("tmp"));
    git.envs([("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_TERMINAL_PROMPT", "0")]);
    git.env("GIT_SSL_CAINFO", lab.authority());
    // Over HTTP/2, the curl in it (Debian 12's 7.88) loses some of what is pushed when its
    // connection is slow to take it.
    git.env("GIT_CONFIG_COUNT", "1");
    git.env("GIT_CONFIG_KEY_0", "http.version").env("GIT_CONFIG_VALUE_0", "HTTP/1.1");
    for who in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{who}_NAME"), "lab").env(format!("GIT_{who}_EMAIL"), "lab@example.com");
    }
    command::run(git.arg("-C").arg(directory).args(args))
}

/// Pushes a repository with a large file and many small ones, clones it, and changes it there.
pub fn repositories_are_pushed_cloned_and_fetched(lab: &Lab) -> Result<()> {
    let _server = Git::start(lab, "demo.git")?;
    let witness = Witness::start(lab)?;
    let url = format!("https://{ALLOWED_NAME}/git/demo.git");
    let first = lab.state().directory("tmp/first")?;
    let second = lab.state().path("tmp/second");

    // Something that neither compresses nor fits into a few packets, and many small objects.
    git(lab, &first, &["init", "--quiet", "--initial-branch=main"])?;
    std::fs::copy(lab.large_file(), first.join("large.bin")).context("cannot copy")?;
    for number in 0..200 {
        std::fs::write(first.join(format!("{number}.txt")), format!("file {number}\n"))
            .context("cannot write")?;
    }
    git(lab, &first, &["add", "."])?;
    git(lab, &first, &["commit", "--quiet", "--message=first"])?;
    git(lab, &first, &["push", "--quiet", &url, "main"])?;

    let directory = second.display().to_string();
    git(lab, &first, &["clone", "--quiet", "--branch=main", &url, &directory])?;
    git(lab, &second, &["fsck", "--strict"])?;
    let head = |directory: &Path| git(lab, directory, &["rev-parse", "HEAD"]);
    ensure!(head(&second)? == head(&first)?, "the clone has another commit");
    let hashes = (sha256(&second.join("large.bin"))?, sha256(&lab.large_file())?);
    ensure!(hashes.0 == hashes.1, "the large file of the clone differs");
    ensure!(std::fs::read_to_string(second.join("199.txt")).context("cannot read")? == "file 199\n");

    std::fs::write(second.join("0.txt"), "changed\n").context("cannot write")?;
    git(lab, &second, &["commit", "--quiet", "--all", "--message=second"])?;
    git(lab, &second, &["push", "--quiet", "origin", "main"])?;
    git(lab, &first, &["pull", "--quiet", "--ff-only", &url, "main"])?;
    ensure!(head(&first)? == head(&second)?, "the fetch brought another commit");
    ensure!(std::fs::read_to_string(first.join("0.txt")).context("cannot read")? == "changed\n");
    finish(witness)
}
