//! Files over plain HTTP, from a server that the firewall does not stand in for.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    Lab, Process,
    addresses::TOOLS,
    hosts::{internet::START_LIMIT, nginx},
};

/// A web server on *internet*, at [`Files::PORT`] of [`TOOLS`]: it has the lab's large file, and
/// takes what is put below `/upload/`. Ports 80 and 443 end at the firewall's proxy; connections to
/// this one go all the way, so that packets may be too big for any link on it.
#[derive(Debug)]
pub struct Files {
    _nginx: Process,
    root: PathBuf,
}

impl Files {
    /// Its port.
    pub const PORT: u16 = 8080;

    /// Starts it; it listens when this returns.
    pub fn start(lab: &Lab) -> Result<Self> {
        let root = lab.state().path("www");
        let server = format!(
            "server {{\n\
             listen {TOOLS}:{};\n\
             root {};\n\
             location /upload/ {{ dav_methods PUT; create_full_put_path on; client_max_body_size 0; }}\n\
             }}\n",
            Self::PORT,
            root.display()
        );
        let mut nginx = nginx::start(lab.state(), &lab.hosts.internet, "files", &server, "")?;
        nginx.wait_until(START_LIMIT, || lab.hosts.internet.listens_tcp(Self::PORT))?;
        Ok(Self { _nginx: nginx, root })
    }

    /// Returns the path of an upload to `/upload/<file>`.
    pub fn uploaded(&self, file: &str) -> PathBuf {
        self.root.join("upload").join(file)
    }
}
