//! PostgreSQL.

use std::{
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use nix::unistd::User;

use crate::{Lab, Process, addresses::TOOLS, command, hosts::internet::START_LIMIT, namespace::Namespace};

/// Debian keeps the server's programs out of the path, one directory a version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// The server's user. PostgreSQL refuses to run as root.
const OWNER: &str = "postgres";

/// A PostgreSQL on *internet*, at [`Database::PORT`] of [`TOOLS`]. It goes away with the lab.
#[derive(Debug)]
pub struct Database {
    _postgres: Process,
}

impl Database {
    /// Its port.
    pub const PORT: u16 = 5432;

    /// The user that the server knows.
    pub const USER: &str = "lab";
    /// Its password; the server asks for it.
    pub const PASSWORD: &str = "not a secret";

    /// Makes an empty cluster and starts it; it answers when this returns.
    pub fn start(lab: &Lab) -> Result<Self> {
        let internet = &lab.hosts.internet;
        let programs = programs()?;
        let home = lab.state().directory("database")?;
        let owner = User::from_name(OWNER).context("cannot look up users")?;
        let owner = owner.with_context(|| format!("there is no user {OWNER}"))?;
        let data = home.join("data");
        let password = lab.state().write("database/password", format!("{}\n", Self::PASSWORD))?;
        for path in [&home, &password] {
            chown(path, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))
                .with_context(|| format!("cannot give {} to {OWNER}", path.display()))?;
        }
        let mut initdb = as_owner(internet, &programs.join("initdb"))?;
        initdb.args(["--no-sync", "--locale=C", "--encoding=UTF8", "--auth=scram-sha-256"]);
        initdb.arg(format!("--username={}", Self::USER)).arg("--pwfile").arg(&password);
        command::run(initdb.arg("--pgdata").arg(&data))?;
        let access = "host all all 0.0.0.0/0 scram-sha-256\n";
        lab.state().write("database/data/pg_hba.conf", access)?;

        let mut postgres = as_owner(internet, &programs.join("postgres"))?;
        postgres.arg("-D").arg(&data);
        let listen = format!("listen_addresses={TOOLS}");
        let port = format!("port={}", Self::PORT);
        for setting in [&*listen, &*port, "unix_socket_directories=", "fsync=off", "shared_buffers=16MB"] {
            postgres.arg("-c").arg(setting);
        }
        let mut postgres = Process::spawn(lab.state(), "postgres", postgres)?;
        postgres.wait_for_log("database system is ready to accept connections", START_LIMIT)?;
        Ok(Self { _postgres: postgres })
    }
}

/// A command for one of the server's programs, as the server's user, in a separate IPC namespace:
/// shared memory of a killed server goes away with that.
fn as_owner(namespace: &Namespace, program: &Path) -> Result<Command> {
    let mut command = namespace.command("unshare")?;
    command.args(["--ipc", "--", "setpriv"]);
    command.args([&format!("--reuid={OWNER}"), &format!("--regid={OWNER}"), "--clear-groups", "--"]);
    // It wants to be somewhere where it may be.
    command.arg(program).current_dir("/").env("TZ", "UTC");
    Ok(command)
}

/// The directory of the newest version.
fn programs() -> Result<PathBuf> {
    command::require("postgresql")?;
    let versions = std::fs::read_dir(VERSIONS).with_context(|| format!("cannot read {VERSIONS}"))?;
    let found = versions.flatten().map(|version| version.path().join("bin"));
    let found = found.filter(|programs| programs.join("initdb").is_file());
    let version = |programs: &PathBuf| {
        let name = programs.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        name.and_then(|name| name.parse::<u32>().ok()).unwrap_or_default()
    };
    found.max_by_key(version).with_context(|| format!("no version of PostgreSQL in {VERSIONS} has a server"))
}
