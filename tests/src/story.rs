//! The lab's story: one line for each scene, with the action, the expected result and the result.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use router_user::model::{Counters, Flow};

use crate::{
    addresses::{ALLOWED_NAME, DENIED_NAME, ECHO_PORT, ENDPOINT, IPERF_PORT, PLATFORM, TOOLS},
    balancer::PROBE_THRESHOLD,
    client::{self, Direction, Tcp, Udp},
    hosts::{internet, router::HEALTHY_LIMIT},
    interrupt,
    lab::Lab,
    variants::Router,
    wait,
};

/// The limit for one echo through the whole lab.
const ECHO_LIMIT: Duration = Duration::from_secs(2);

/// The limit for a log line to appear.
const LOG_LIMIT: Duration = Duration::from_secs(5);

/// Counts the scenes that have been played.
#[derive(Debug, Default)]
pub struct Story {
    scenes: usize,
    failed: usize,
}

impl Story {
    /// Plays a scene and prints its line: `action` is done, `expected` should come of it, and
    /// `play` returns what did.
    pub fn scene(&mut self, action: &str, expected: &str, play: impl FnOnce() -> Result<String>) {
        let outcome = play();
        // After an interrupt the lab is being removed, and failures mean nothing: `gate` never
        // returns.
        let _running = interrupt::gate();
        self.scenes += 1;
        let (word, colour, happened) = match outcome {
            Ok(happened) => ("ok", 32, happened),
            Err(error) => {
                self.failed += 1;
                ("FAILED", 31, format!("{error:#}"))
            }
        };
        let word = format!("{word:6}");
        let word = if io::stdout().is_terminal() { format!("\x1b[{colour}m{word}\x1b[0m") } else { word };
        tell(&format!("  {word}  {action}: expected {expected}; {happened}"));
    }

    /// Returns `true` if every scene passed.
    pub fn passed(&self) -> bool {
        self.failed == 0
    }

    /// Returns the last line.
    pub fn summary(&self) -> String {
        match self.failed {
            0 => format!("all {} scenes passed", self.scenes),
            failed => format!("{failed} of {} scenes FAILED", self.scenes),
        }
    }
}

/// Prints a line of the story. A closed pipe is no error: the scenes go on.
pub fn tell(line: &str) {
    let _gone = writeln!(io::stdout().lock(), "{line}");
}

/// Plays the whole story on a lab that is up.
pub fn play(lab: &mut Lab) -> Result<Story> {
    let mut story = Story::default();
    names(&mut story, lab);
    transfers(&mut story, lab);
    let connections = outage(&mut story, lab);
    if matches!(lab.options.router, Router::PlsRouter(_)) {
        accounts(&mut story, lab);
    }
    drop(connections);
    Ok(story)
}

fn names(story: &mut Story, lab: &Lab) {
    let url = format!("https://{ALLOWED_NAME}/");
    story.scene(&format!("serverless fetches {url}"), "status 200 and the page of that name", || {
        let fetched = client::curl(lab, &url, &[])?;
        ensure!(fetched.status == 200, "curl: status {}, {}", fetched.status, fetched.error);
        ensure!(fetched.body == internet::front_page(ALLOWED_NAME), "the page says \"{}\"", fetched.body);
        Ok(format!("got 200 \"{}\" in {:.0} ms", fetched.body.trim(), fetched.seconds * 1e3))
    });

    let url = format!("https://{DENIED_NAME}/");
    story.scene(
        &format!("serverless fetches {url}"),
        "a refusal by the firewall and a line in its log",
        || {
            let fetched = client::curl(lab, &url, &[])?;
            ensure!(
                fetched.status == 0 && fetched.exit != 0,
                "got status {}: {}",
                fetched.status,
                fetched.body
            );
            let line = firewall_says(lab, &format!("deny tls name={DENIED_NAME}"))?;
            Ok(format!("{}; the firewall's log: {line}", fetched.error))
        },
    );

    let denied = format!("http://{DENIED_NAME}/");
    let allowed = format!("http://{ALLOWED_NAME}/");
    story.scene(&format!("serverless fetches {allowed} and {denied}"), "status 200, then a refusal", || {
        let fetched = client::curl(lab, &allowed, &[])?;
        ensure!(
            fetched.body == internet::front_page(ALLOWED_NAME),
            "{allowed}: {} {}",
            fetched.status,
            fetched.error
        );
        let fetched = client::curl(lab, &denied, &[])?;
        ensure!(fetched.status == 470, "{denied}: {} {}", fetched.status, fetched.error);
        Ok(format!("got 200, then {} \"{}\"", fetched.status, fetched.body.trim()))
    });
}

/// Waits for a line in the firewall's log.
fn firewall_says(lab: &Lab, text: &str) -> Result<String> {
    wait::until("the firewall's log", LOG_LIMIT, || {
        let log = lab.firewall_log();
        match log.lines().rev().find(|line| line.contains(text)) {
            Some(line) => Ok(line.to_owned()),
            None => bail!("the firewall's log has no \"{text}\""),
        }
    })
}

fn transfers(story: &mut Story, lab: &Lab) {
    let size = lab.options.large_file >> 20;
    story.scene(
        &format!("serverless downloads {size} MiB over HTTPS"),
        "the same SHA-256 as the server's file",
        || {
            let file = lab.state().path("tmp/downloaded");
            let url = format!("https://{ALLOWED_NAME}/{}", internet::LARGE_FILE);
            let fetched = client::download(lab, &url, &file)?;
            ensure!(fetched.status == 200, "curl: status {}, {}", fetched.status, fetched.error);
            let (got, wanted) = (client::sha256(&file)?, client::sha256(&lab.large_file())?);
            std::fs::remove_file(&file)?;
            ensure!(got == wanted, "SHA-256 {got} instead of {wanted}");
            let rate = rate(lab.options.large_file as f64 * 8.0 / fetched.seconds);
            Ok(format!("{} in {:.2} s, {rate}", &got[..16], fetched.seconds))
        },
    );

    story.scene("serverless sends 100 datagrams to a UDP echo server", "all of them back", || {
        let udp = Udp::open(&lab.hosts.serverless, (ENDPOINT, ECHO_PORT).into())?;
        let mut slowest = Duration::ZERO;
        for number in 0..100_u8 {
            let datagram = vec![number; usize::from(number) * 14 + 1];
            slowest = slowest.max(udp.echo(&datagram, ECHO_LIMIT)?);
        }
        Ok(format!("all came back, the slowest in {:.1} ms", slowest.as_secs_f64() * 1e3))
    });

    story.scene("a VM pings the internet through the router's masquerade", "10 answers", || {
        let answers = client::ping(&lab.hosts.vm, TOOLS, 10, &[])?;
        ensure!(answers == 10, "{answers} answers");
        Ok(format!("{answers} answers"))
    });

    for (direction, way) in [(Direction::Up, "to the internet"), (Direction::Down, "from the internet")] {
        story.scene(&format!("iperf3 sends for a second {way}"), "data to arrive", || {
            let target = (ENDPOINT, IPERF_PORT).into();
            let speed = client::iperf3(&lab.hosts.serverless, target, direction, &["--time", "1"])?;
            ensure!(speed > 0.0, "nothing arrived");
            Ok(rate(speed))
        });
    }
}

fn rate(bits_per_second: f64) -> String {
    format!("{:.2} Gbit/s", bits_per_second / 1e9)
}

/// Kills the router and starts it again. Returns the connections that are open at the end.
fn outage(story: &mut Story, lab: &mut Lab) -> Vec<Tcp> {
    let target = (ENDPOINT, ECHO_PORT).into();
    let name = match &lab.options.router {
        Router::PlsRouter(_) => "pls-router",
        Router::Nftables => "the health responder",
        Router::Machine => "the machine",
    };
    story.scene(&format!("the load balancer probes the router from {PLATFORM}"), "status 200", || {
        let (status, _) = lab.health()?;
        ensure!(status == 200 && lab.in_service()?, "status {status}; the probe's log:\n{}", lab.probe_log());
        Ok("200, the router is in service".to_owned())
    });

    let connection = Tcp::connect(&lab.hosts.serverless, target, ECHO_LIMIT);
    let mut connection = match connection {
        Ok(connection) => connection,
        Err(error) => {
            story.scene("serverless opens a connection", "a connection", || Err(error));
            return Vec::new();
        }
    };

    // A probe that was under way at the kill may still have seen a healthy router.
    let limit = lab.options.probe_interval * (PROBE_THRESHOLD + 1) + Duration::from_secs(1);
    story.scene(
        &format!("{name} is killed with SIGKILL"),
        &format!("the load balancer to take it out within {limit:?}"),
        || {
            let killed = Instant::now();
            lab.router()?.kill()?;
            lab.wait_out_of_service(limit)?;
            let reason = lab
                .probe_log()
                .lines()
                .rev()
                .find_map(|line| line.split_once("probe failed: ").map(|(_, why)| why.to_owned()));
            Ok(format!(
                "out of service after {:.1} s ({})",
                killed.elapsed().as_secs_f64(),
                reason.unwrap_or_default()
            ))
        },
    );
    story.scene(&format!("the open connection while {name} is dead"), "an echo", || {
        let took = connection.echo(b"still there?", ECHO_LIMIT)?;
        Ok(format!("an echo in {:.1} ms", took.as_secs_f64() * 1e3))
    });
    story.scene("a new connection while the router is out of service", "no answer", || {
        match Tcp::connect(&lab.hosts.serverless, target, Duration::from_millis(500)) {
            Ok(_) => bail!("it opened"),
            Err(error) => Ok(format!("{}", error.root_cause())),
        }
    });
    let mut new = None;
    story.scene(&format!("{name} is started again"), "service again, and both connections to work", || {
        let started = Instant::now();
        lab.start_router()?;
        let healthy = started.elapsed();
        lab.wait_in_service(HEALTHY_LIMIT)?;
        let back = started.elapsed();
        connection.echo(b"and now?", ECHO_LIMIT)?;
        new.insert(Tcp::connect(&lab.hosts.serverless, target, ECHO_LIMIT)?).echo(b"hello", ECHO_LIMIT)?;
        Ok(format!(
            "healthy after {:.1} s, in service after {:.1} s",
            healthy.as_secs_f64(),
            back.as_secs_f64()
        ))
    });
    [connection].into_iter().chain(new).collect()
}

/// The sessions that each rule must have counted by now, and the fewest packets of each direction.
const ACCOUNTS: [(&str, u64, u64); 6] = [
    // The allowed name, the denied one, the download.
    ("https", 3, 20),
    ("http", 2, 8),
    // Two runs with two connections each.
    ("iperf", 4, 1000),
    // The connection that survived the outage, and the one after it.
    ("echo-tcp", 2, 5),
    ("echo-udp", 1, 100),
    ("vnet", 1, 10),
];

/// Compares the router's counters with what was sent.
fn accounts(story: &mut Story, lab: &Lab) {
    let expected = ACCOUNTS.map(|(rule, sessions, _)| format!("{rule} {sessions}")).join(", ");
    story.scene("`pls-router counters`", &format!("these sessions: {expected}"), || {
        let counters: Counters = lab.pls_router_json(&["counters"])?;
        for (name, sessions, packets) in ACCOUNTS {
            let rule = counters.rules.iter().find(|rule| rule.name == name);
            let rule = rule.with_context(|| format!("the rule {name} is missing"))?;
            ensure!(
                rule.sessions_opened == sessions,
                "{name} opened {} sessions, not {sessions}",
                rule.sessions_opened
            );
            let fewest = rule.forward_packets.min(rule.reply_packets);
            ensure!(fewest >= packets, "{name} counted only {fewest} packets in one direction");
        }
        let by_action = |action: &str| {
            let rows = counters.reasons.iter().filter(|row| row.action == action && row.packets > 0);
            rows.map(|row| format!("{} {}", row.reason, row.packets)).collect::<Vec<_>>().join(", ")
        };
        ensure!(by_action("drop").is_empty(), "dropped: {}", by_action("drop"));
        Ok(format!(
            "the same; packets forwarded: {}; passed to the kernel: {}",
            by_action("forward"),
            by_action("pass")
        ))
    });

    story.scene("`pls-router flows`", "the two open connections to the echo server", || {
        let flows: Vec<Flow> = lab.pls_router_json(&["flows"])?;
        let open: Vec<&Flow> =
            flows.iter().filter(|flow| flow.rule == "echo-tcp" && flow.state == "established").collect();
        ensure!(open.len() == 2, "{} are established, of {} flows: {flows:?}", open.len(), flows.len());
        let target = (TOOLS, ECHO_PORT).into();
        ensure!(open.iter().all(|flow| flow.target == target), "they lead elsewhere: {open:?}");
        let tell =
            |flow: &&Flow| format!("{} -> {} as {} -> {}", flow.client, flow.listen, flow.snat, flow.target);
        Ok(format!(
            "{} flows, among them {}",
            flows.len(),
            open.iter().map(tell).collect::<Vec<_>>().join(", ")
        ))
    });
}
