//! git over HTTPS: git's own CGI program behind the web server that has the lab's names.

use std::{
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{Lab, Process, command, hosts::internet::START_LIMIT, state::State};

/// Where the web server finds who runs CGI programs, in the lab's directory.
const SOCKET: &str = "git/fastcgi";
/// The CGI program, in the lab's directory.
const PROGRAM: &str = "git/backend";

/// What the web server has to know, whether there is a git server or not (if not, it answers 502).
pub(crate) fn location(state: &State) -> String {
    let parameters = [
        ("SCRIPT_FILENAME", &*state.path(PROGRAM).display().to_string()),
        ("PATH_INFO", "$1"),
        ("QUERY_STRING", "$query_string"),
        ("REQUEST_METHOD", "$request_method"),
        ("CONTENT_TYPE", "$content_type"),
        ("CONTENT_LENGTH", "$content_length"),
        ("REMOTE_ADDR", "$remote_addr"),
        ("SERVER_PROTOCOL", "$server_protocol"),
    ]
    .map(|(name, value)| format!("fastcgi_param {name} {value};\n"));
    format!(
        "location ~ ^/git(/.*)$ {{\n\
         client_max_body_size 0;\n\
         {}\
         fastcgi_pass unix:{};\n\
         }}\n",
        parameters.concat(),
        state.path(SOCKET).display()
    )
}

/// A git server below `https://<any of the lab's names>/git/`. It goes away with the lab.
#[derive(Debug)]
pub struct Git {
    _fcgiwrap: Process,
}

impl Git {
    /// Makes an empty repository of this name (`https://<name>/git/<repository>`) and starts the server.
    pub fn start(lab: &Lab, repository: &str) -> Result<Self> {
        let state = lab.state();
        let root = state.directory("git/repositories")?;
        let path = root.join(repository);
        command::run(Command::new("git").args(["init", "--quiet", "--bare"]).arg(&path))?;
        let mut configure = Command::new("git");
        // Whoever gets here may push.
        configure.arg("--git-dir").arg(&path).args(["config", "http.receivepack", "true"]);
        command::run(&mut configure)?;
        let program = state.write(
            PROGRAM,
            format!(
                "#!/bin/sh\nGIT_PROJECT_ROOT='{}' GIT_HTTP_EXPORT_ALL=1 exec git http-backend\n",
                root.display()
            ),
        )?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} a program", program.display()))?;

        let socket = state.path(SOCKET);
        let mut fcgiwrap = lab.hosts.internet.command("fcgiwrap")?;
        fcgiwrap.args(["-f", "-c", "2", "-s"]).arg(format!("unix:{}", socket.display()));
        let mut fcgiwrap = Process::spawn(state, "fcgiwrap", fcgiwrap)?;
        fcgiwrap.wait_until(START_LIMIT, || {
            UnixStream::connect(&socket).map(drop).context("nobody takes connections")
        })?;
        Ok(Self { _fcgiwrap: fcgiwrap })
    }
}
