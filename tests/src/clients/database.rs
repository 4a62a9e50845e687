//! psql against PostgreSQL.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};

use super::finish;
use crate::{
    Lab,
    addresses::{ENDPOINT, FIREWALL_PUBLIC},
    command,
    servers::Database,
    witness::Witness,
};

/// Runs a script of SQL on the client. Returns the rows, one per line, with columns separated by
/// `|`.
fn psql(lab: &Lab, script: &str) -> Result<String> {
    let mut psql = lab.hosts.serverless.command("psql")?;
    psql.env("PGPASSWORD", Database::PASSWORD).env("PGCONNECT_TIMEOUT", "5").env("PGSSLMODE", "disable");
    psql.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"]);
    psql.args(["--host", &ENDPOINT.to_string(), "--username", Database::USER, "--dbname", "postgres"]);
    command::run_with_input(&mut psql, script)
}

/// Writes and reads a table in two sessions, and row by row in a third one.
pub fn rows_come_back_as_they_were_put_in(lab: &Lab) -> Result<()> {
    const ROWS: u32 = 5_000;
    let _server = Database::start(lab)?;
    let witness = Witness::start(lab)?;

    // Two sessions after each other: the second reads what the first has written.
    let mut rows = String::new();
    for id in 0..ROWS {
        writeln!(rows, "{id}\t{}", "row ".repeat((id % 50) as usize + 1)).context("a string is full")?;
    }
    let put =
        format!("CREATE TABLE demo (id int PRIMARY KEY, note text);\nCOPY demo FROM STDIN;\n{rows}\\.\n");
    psql(lab, &put)?;
    ensure!(psql(lab, "COPY (SELECT * FROM demo ORDER BY id) TO STDOUT;")? == rows, "other rows came back");

    // One statement an exchange, in one session.
    let mut script = "BEGIN;\nDECLARE walk CURSOR FOR SELECT id FROM demo ORDER BY id;\n".to_owned();
    script.push_str(&"FETCH 1 FROM walk;\n".repeat(200));
    let wanted: String = (0..200).map(|id| format!("{id}\n")).collect();
    ensure!(psql(lab, &script)? == wanted, "other rows were fetched");

    // The server does not know which client asked.
    let client = psql(lab, "SELECT inet_client_addr();")?;
    ensure!(client.trim() == FIREWALL_PUBLIC.to_string(), "the server sees {client}");
    finish(witness)
}
