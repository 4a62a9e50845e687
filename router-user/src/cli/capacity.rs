//! `pls-router capacity`

use std::path::Path;
use std::time::{Duration, Instant};

use router_common::ports::PortRange;

use super::Answer;
use super::options::{CapacityArguments, Format, Global};
use super::output::{self, BAD, DOUBTFUL, grouped, styled};
use super::table::{Align, Cell, Table};
use crate::capacity::{self, Given, Measured, NEAR};
use crate::client::{Client, ClientError};
use crate::config::Config;
use crate::model::{Capacity, CapacityLimit, Counters, Rule, Status};
use crate::port_plan;

/// The time over which rates are measured.
const SAMPLE: Duration = Duration::from_secs(1);

pub(super) async fn run(
    global: &Global,
    client: &Client,
    arguments: &CapacityArguments,
) -> anyhow::Result<Answer> {
    let config = Config::load(&global.config)?.config;
    let answers = match ask(client).await {
        Ok(answers) => Some(answers),
        Err(ClientError::NoDaemon { .. }) => None,
        Err(error) => {
            output::remark(&format!("(what is configured only: {error})"));
            None
        }
    };
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let given = Given {
        config: &config,
        ports: ports(&config, answers.as_ref().map(|answers| &answers.status)),
        service_addresses: arguments.pls_addresses,
        cores: arguments.cores.unwrap_or_else(|| u64::try_from(cores()).unwrap_or(1)),
        bandwidth: arguments.bandwidth.map(|mbits| mbits.saturating_mul(1_000_000)),
        measured: answers.as_ref().map(|answers| Measured {
            status: &answers.status,
            rules: &answers.rules,
            counters: [&answers.after, &answers.before],
            time: answers.time,
        }),
    };
    let limits = capacity::limits(&given);
    let ok = !limits.iter().any(is_near);
    let capacity = Capacity {
        config: global.config.display().to_string(),
        measured: answers.is_some(),
        sample_seconds: answers.as_ref().map(|answers| answers.time.as_secs_f64()),
        limits,
        ok,
    };
    match arguments.output.output {
        Format::Json => output::json(&capacity)?,
        Format::Text => output::print(&text(&capacity, &global.config))?,
    }
    Ok(if ok { Answer::Good } else { Answer::Bad })
}

/// Reports of the daemon, as the API gives them.
struct Answers {
    status: Status,
    rules: Vec<Rule>,
    before: Counters,
    after: Counters,
    time: Duration,
}

async fn ask(client: &Client) -> Result<Answers, ClientError> {
    let (start, before) = (Instant::now(), client.counters().await?);
    let (status, rules) = (client.status().await?, client.rules().await?);
    tokio::time::sleep(SAMPLE).await;
    let after = client.counters().await?;
    Ok(Answers { status, rules, before, after, time: start.elapsed() })
}

/// The SNAT ports of each address: as the daemon has them, or as a daemon on this machine would.
fn ports(config: &Config, status: Option<&Status>) -> PortRange {
    let known = port_plan::snat_ports(config, &port_plan::Kernel::read());
    let measured = status.and_then(|status| status.snat_ports.first());
    let size = measured.map(|row| row.used.saturating_add(row.free));
    match size.and_then(|size| u16::try_from(size.checked_sub(1)?).ok()) {
        // Another range of the kernel's than when the daemon started: only the number counts here.
        Some(more) if u32::from(more) + 1 != known.size() => {
            let first = known.first.min(u16::MAX - more);
            PortRange { first, last: first + more }
        }
        _ => known,
    }
}

fn is_near(limit: &CapacityLimit) -> bool {
    limit.share.is_some_and(|share| share >= NEAR)
}

fn text(capacity: &Capacity, config: &Path) -> String {
    let measured =
        if capacity.measured { "in use now, by its daemon" } else { "as configured: no daemon answers" };
    let mut text = format!("{}: {measured}\n\n", config.display());
    let mut table = Table::new(&[
        ("LIMIT", Align::Left),
        ("RULE", Align::Left),
        ("NOW", Align::Right),
        ("OF", Align::Right),
        ("UNIT", Align::Left),
        ("USED", Align::Right),
        ("BASIS", Align::Left),
    ]);
    for limit in &capacity.limits {
        table.row(vec![
            limit.id.as_str().into(),
            limit.subject.as_str().into(),
            limit.now.map(grouped).unwrap_or_default().into(),
            limit.limit.map_or_else(|| "?".to_owned(), grouped).into(),
            limit.unit.as_str().into(),
            share(limit),
            limit.basis.as_str().into(),
        ]);
    }
    text.push_str(&table.render());
    text.push('\n');
    for limit in &capacity.limits {
        let about = if limit.subject.is_empty() { String::new() } else { format!(" of {}", limit.subject) };
        let fix = if is_near(limit) {
            styled(BAD, format!("now: {}", limit.fix))
        } else {
            format!("then: {}", limit.fix)
        };
        text.push_str(&format!("{}{about}: {}\n  {fix}\n", limit.id, limit.why));
    }
    text
}

fn share(limit: &CapacityLimit) -> Cell {
    let Some(share) = limit.share else { return "".into() };
    let text = format!("{:.1}%", share * 100.0);
    if is_near(limit) {
        Cell::styled(BAD, text)
    } else if share >= NEAR / 2.0 {
        Cell::styled(DOUBTFUL, text)
    } else {
        text.into()
    }
}
