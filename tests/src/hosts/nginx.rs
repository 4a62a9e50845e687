//! nginx as two of the hosts run it.

use std::path::Path;

use anyhow::Result;

use crate::{namespace::Namespace, process::Process, state::State};

/// Debian's package has the stream module as a file; elsewhere it may be built in.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Starts an nginx with these `http` and `stream` blocks (`stream` may be empty). One process in
/// the foreground: it is easy to end and enough for a lab.
pub(crate) fn start(
    state: &State,
    namespace: &Namespace,
    name: &str,
    http: &str,
    stream: &str,
) -> Result<Process> {
    let logs = state.path("logs");
    let logs = logs.display();
    let prefix = state.directory(&format!("tmp/{name}"))?;
    let prefix = prefix.display();
    let module = if !stream.is_empty() && Path::new(STREAM_MODULE).exists() {
        format!("load_module {STREAM_MODULE};\n")
    } else {
        String::new()
    };
    let stream = if stream.is_empty() { String::new() } else { format!("stream {{\n{stream}}}\n") };
    let configuration = format!(
        "{module}user root;\n\
         daemon off;\n\
         master_process off;\n\
         pid {prefix}/pid;\n\
         error_log {logs}/{name}-error.log warn;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
         access_log off;\n\
         client_body_temp_path {prefix}/body;\n\
         proxy_temp_path {prefix}/proxy;\n\
         fastcgi_temp_path {prefix}/fastcgi;\n\
         uwsgi_temp_path {prefix}/uwsgi;\n\
         scgi_temp_path {prefix}/scgi;\n\
         {http}}}\n\
         {stream}"
    );
    let path = state.write(&format!("conf/{name}.conf"), configuration)?;
    let mut command = namespace.command("nginx")?;
    command.arg("-p").arg(state.path("tmp").join(name)).arg("-c").arg(path);
    command.arg("-e").arg(state.path(&format!("logs/{name}-error.log")));
    Process::spawn(state, name, command)
}
