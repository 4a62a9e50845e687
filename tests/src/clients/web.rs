//! curl, with HTTP/1.1 and HTTP/2.

use anyhow::{Context as _, Result, ensure};

use super::finish;
use crate::{
    Lab,
    addresses::ALLOWED_NAME,
    client::{curl_command, sha256},
    command, front_page,
    witness::Witness,
};

/// curl's report of one transfer.
#[derive(Debug)]
struct Transfer {
    version: String,
    status: u16,
    /// The number of connections that curl opened for this transfer.
    connects: u32,
}

/// Runs one curl for all transfers of `options`, whose bodies have to go to files.
fn transfers(lab: &Lab, options: &[String]) -> Result<Vec<Transfer>> {
    let mut command = curl_command(lab)?;
    command.args(["--write-out", "%{http_version} %{http_code} %{num_connects}\n"]).args(options);
    let output = command::output(&mut command)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "curl failed ({}): {said} {complaints}", output.status);
    let transfer = |line: &str| -> Option<Transfer> {
        let mut words = line.split(' ').map(str::to_owned);
        Some(Transfer {
            version: words.next()?,
            status: words.next()?.parse().ok()?,
            connects: words.next()?.parse().ok()?,
        })
    };
    said.lines().map(|line| transfer(line).with_context(|| format!("curl said \"{line}\""))).collect()
}

/// All on one connection, with this version of HTTP and one of these answers.
fn check(transfers: &[Transfer], count: usize, version: &str, statuses: &[u16]) -> Result<()> {
    ensure!(transfers.len() == count, "{count} transfers are not {transfers:#?}");
    for transfer in transfers {
        ensure!(transfer.version == version && statuses.contains(&transfer.status), "{transfer:?}");
    }
    let connects: u32 = transfers.iter().map(|transfer| transfer.connects).sum();
    ensure!(connects == 1, "{connects} connections for {count} transfers");
    Ok(())
}

/// A file of the lab's directory for the answer to a transfer.
fn answer(lab: &Lab, number: usize) -> std::path::PathBuf {
    lab.state().path(&format!("tmp/answer-{number}"))
}

/// Fetches and stores pages and files one after the other.
pub fn http_1_1_downloads_and_uploads_on_one_connection(lab: &Lab) -> Result<()> {
    const PAGES: usize = 20;
    let witness = Witness::start(lab)?;
    let original = sha256(&lab.large_file())?;
    let mut options = vec!["--http1.1".to_owned()];
    for number in 0..PAGES {
        let path = if number % 2 == 0 { "" } else { "large.bin" };
        options.push(format!("https://{ALLOWED_NAME}/{path}"));
        options.extend(["--output".to_owned(), answer(lab, number).display().to_string()]);
    }
    check(&transfers(lab, &options)?, PAGES, "1.1", &[200])?;
    for number in 0..PAGES {
        let file = answer(lab, number);
        if number % 2 == 0 {
            let page = std::fs::read_to_string(&file).context("no page")?;
            ensure!(page == front_page(ALLOWED_NAME), "page {number} is \"{page}\"");
        } else {
            ensure!(sha256(&file)? == original, "download {number} differs");
        }
    }

    let mut options = vec!["--http1.1".to_owned()];
    for number in 0..3 {
        let file = lab.large_file().display().to_string();
        options.extend(["--upload-file".to_owned(), file]);
        options.push(format!("https://{ALLOWED_NAME}/upload/{number}"));
    }
    check(&transfers(lab, &options)?, 3, "1.1", &[201])?;
    for number in 0..3 {
        let uploaded = lab.uploaded(ALLOWED_NAME, &number.to_string());
        ensure!(sha256(&uploaded)? == original, "upload {number} differs");
    }
    finish(witness)
}

/// Fetches files at the same time, and stores one.
pub fn http_2_multiplexes_on_one_connection(lab: &Lab) -> Result<()> {
    const STREAMS: usize = 24;
    let witness = Witness::start(lab)?;
    let original = sha256(&lab.large_file())?;
    let mut options: Vec<String> =
        ["--http2", "--parallel", "--parallel-max", "50"].map(str::to_owned).into();
    for number in 0..STREAMS {
        options.push(format!("https://{ALLOWED_NAME}/large.bin"));
        options.extend(["--output".to_owned(), answer(lab, number).display().to_string()]);
    }
    check(&transfers(lab, &options)?, STREAMS, "2", &[200])?;
    for number in 0..STREAMS {
        ensure!(sha256(&answer(lab, number))? == original, "stream {number} differs");
    }

    let file = lab.large_file().display().to_string();
    let url = format!("https://{ALLOWED_NAME}/upload/http2");
    let options = ["--http2".to_owned(), "--upload-file".to_owned(), file, url];
    check(&transfers(lab, &options)?, 1, "2", &[201])?;
    ensure!(sha256(&lab.uploaded(ALLOWED_NAME, "http2"))? == original, "the upload differs");
    finish(witness)
}
