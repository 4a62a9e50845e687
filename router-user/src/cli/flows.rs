//! `pls-router flows`

use hyper::StatusCode;

use super::Answer;
use super::options::{FlowsArguments, Format};
use super::output::{self, grouped, time};
use super::table::{Align, Table};
use crate::client::{Client, ClientError};
use crate::model::{Flow, FlowQuery};

pub(super) async fn run(client: &Client, arguments: &FlowsArguments) -> anyhow::Result<Answer> {
    let limit = (arguments.limit > 0).then_some(arguments.limit);
    let query = FlowQuery {
        rule: arguments.rule.clone(),
        protocol: arguments.protocol.clone(),
        client: arguments.client,
        limit,
    };
    if limit.is_none() && matches!(arguments.output.output, Format::Json) {
        // All sessions may not fit the memory of this process.
        let mut list = with_daemons_text(client.flows_as_written(&query).await)?;
        while let Some(part) = list.next().await? {
            output::raw(&part)?;
        }
        return Ok(Answer::Good);
    }
    let flows = with_daemons_text(client.flows(&query).await)?;
    match arguments.output.output {
        Format::Text => output::print(&text(&flows))?,
        Format::Json => output::json(&flows)?,
    }
    if limit == Some(flows.len()) {
        let shown = output::counted(flows.len() as u64, "session");
        output::remark(&format!("({shown} shown; there may be more: --limit 0 shows all)"));
    }
    Ok(Answer::Good)
}

/// Passes on the daemon's own text about a rule that does not exist.
fn with_daemons_text<T>(answer: Result<T, ClientError>) -> anyhow::Result<T> {
    match answer {
        Err(ClientError::Refused { status: StatusCode::NOT_FOUND, text }) => anyhow::bail!(text),
        answer => Ok(answer?),
    }
}

fn text(flows: &[Flow]) -> String {
    let mut table = Table::new(&[
        ("RULE", Align::Left),
        ("PROTO", Align::Left),
        ("CLIENT", Align::Left),
        ("LISTEN", Align::Left),
        ("SOURCE", Align::Left),
        ("TARGET", Align::Left),
        ("STATE", Align::Left),
        ("AGE", Align::Right),
        ("IDLE", Align::Right),
        ("LEFT", Align::Right),
        ("PACKETS", Align::Right),
        ("BYTES", Align::Right),
        ("REPLIES", Align::Right),
        ("REPLY BYTES", Align::Right),
    ]);
    for flow in flows {
        table.row(vec![
            flow.rule.as_str().into(),
            flow.protocol.as_str().into(),
            flow.client.to_string().into(),
            flow.listen.to_string().into(),
            flow.snat.to_string().into(),
            flow.target.to_string().into(),
            flow.state.as_str().into(),
            time(flow.age_seconds).into(),
            time(flow.idle_seconds).into(),
            time(flow.expires_seconds).into(),
            grouped(flow.forward_packets).into(),
            grouped(flow.forward_bytes).into(),
            grouped(flow.reply_packets).into(),
            grouped(flow.reply_bytes).into(),
        ]);
    }
    table.render()
}
