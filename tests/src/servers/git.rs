//! git over HTTPS: git's CGI program in a separate web server, behind the one that has the lab's
//! names.

use std::{os::unix::net::UnixStream, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    Lab, Process, command,
    hosts::internet::{GIT_SOCKET, START_LIMIT},
};

/// A git server below `https://<any of the lab's names>/git/`. It goes away with the lab.
#[derive(Debug)]
pub struct Git {
    _lighttpd: Process,
}

impl Git {
    /// Makes an empty repository (`https://<name>/git/<repository>`) and starts the server.
    pub fn start(lab: &Lab, repository: &str) -> Result<Self> {
        let state = lab.state();
        let root = state.directory("git/repositories")?;
        let path = root.join(repository);
        command::run(Command::new("git").args(["init", "--quiet", "--bare"]).arg(&path))?;
        let mut configure = Command::new("git");
        // Anonymous clients may push.
        configure.arg("--git-dir").arg(&path).args(["config", "http.receivepack", "true"]);
        command::run(&mut configure)?;

        let programs = command::run(Command::new("git").arg("--exec-path"))?;
        let socket = state.path(GIT_SOCKET);
        let configuration = state.write(
            "conf/git.conf",
            configuration(&root, &socket, &state.directory("tmp/git")?, Path::new(programs.trim())),
        )?;
        let mut lighttpd = lab.hosts.internet.command("lighttpd")?;
        lighttpd.arg("-D").arg("-f").arg(configuration);
        let mut lighttpd = Process::spawn(state, "lighttpd", lighttpd)?;
        lighttpd.wait_until(START_LIMIT, || {
            UnixStream::connect(&socket).map(drop).context("it does not accept connections")
        })?;
        Ok(Self { _lighttpd: lighttpd })
    }
}

/// The configuration of `git help http-backend` for lighttpd, with all permissions.
fn configuration(repositories: &Path, socket: &Path, scratch: &Path, programs: &Path) -> String {
    format!(
        "server.modules = (\"mod_alias\", \"mod_cgi\", \"mod_setenv\")\n\
         server.bind = \"{socket}\"\n\
         server.document-root = \"{repositories}\"\n\
         server.upload-dirs = (\"{scratch}\")\n\
         alias.url = (\"/git\" => \"{programs}/git-http-backend\")\n\
         cgi.assign = (\"\" => \"\")\n\
         setenv.add-environment = (\"GIT_PROJECT_ROOT\" => \"{repositories}\", \"GIT_HTTP_EXPORT_ALL\" => \"1\")\n",
        socket = socket.display(),
        repositories = repositories.display(),
        scratch = scratch.display(),
        programs = programs.display(),
    )
}
