//! `lab`: brings the lab up, plays its story and removes it; or keeps it, to be entered and removed
//! later.

use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use lab::{
    HOSTS, Lab, Namespace, Nics, Options, PROBE_INTERVAL, Router,
    addresses::MOST_ROUTERS,
    fleet::{
        self,
        story::{Size, Stage},
    },
    helper::{Server, this_binary},
    paths, state,
    story::{self, tell},
    target,
};

/// The name of the lab if none is given.
const DEFAULT: &str = "default";

/// The story of several routers.
const FLEET: Size =
    Size { connections: 20, sockets: 4, drain: Duration::from_secs(5), healthy_for: Duration::from_secs(5) };

/// Azure's network around pls-router, in network namespaces: a serverless client, Private Link with
/// a load balancer, the router VM, a firewall and the internet. Brings it up, sends real traffic,
/// prints what happened, and removes it.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask lab",
    bin_name = "cargo xtask lab",
    after_help = "Examples:\n  \
        cargo xtask lab                                             play the whole story, then remove the lab\n  \
        cargo xtask lab --routers 3                                 the story of three routers\n  \
        cargo xtask lab --keep --nics 2                             keep the lab, with two NICs\n  \
        cargo xtask lab --exec router pls-router counters --watch   look into the lab that was kept\n  \
        cargo xtask lab --exec serverless curl https://www.example.com/\n  \
        cargo xtask lab --down                                      remove it\n\n\
        Exit codes: 0 every scene passed (or the command of --exec exited with 0); 1 one failed; 2 wrong usage."
)]
struct Arguments {
    /// Keep the lab afterwards and print how to enter it.
    #[arg(long)]
    keep: bool,
    /// NICs of the router VM: one for both sides, or one for each side.
    #[arg(long, value_enum, default_value = "1")]
    nics: NicsArgument,
    /// Router VMs behind the load balancer. More than one have a story of their own: one is
    /// drained, one dies, `deploy` upgrades all, and the firewall fails.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = routers)]
    routers: usize,
    /// The router.
    #[arg(long, value_enum, default_value = "pls-router")]
    router: RouterArgument,
    /// Remove the lab that was kept.
    #[arg(long, conflicts_with_all = ["keep", "exec"])]
    down: bool,
    /// Run a command (default: a shell) on a host of the lab that was kept.
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_names = ["HOST", "COMMAND"])]
    exec: Option<Vec<String>>,
    /// The lab's name: letters and digits. Labs with different names can be up at the same time.
    #[arg(long, default_value = DEFAULT)]
    id: String,
    #[command(subcommand)]
    internal: Option<Internal>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum NicsArgument {
    #[value(name = "1")]
    One,
    #[value(name = "2")]
    Two,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RouterArgument {
    /// The daemon of this repository.
    PlsRouter,
    /// nftables with the same rules: what pls-router replaces.
    Nftables,
}

#[derive(Debug, Subcommand)]
enum Internal {
    /// One of the lab's own servers.
    #[command(subcommand, hide = true)]
    Helper(Server),
}

fn routers(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=MOST_ROUTERS).contains(number));
    number.ok_or_else(|| format!("a lab has 1 to {MOST_ROUTERS} routers"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments {
        Arguments { internal: Some(Internal::Helper(server)), .. } => server.serve().map(|()| true),
        Arguments { down: true, id, .. } => down(id),
        Arguments { exec: Some(words), id, .. } => enter(id, words).map(|never| match never {}),
        _ => run(&arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run this as root or with sudo");
    Ok(())
}

fn down(id: &str) -> Result<bool> {
    root()?;
    tell(&if state::down(id)? {
        format!("the lab \"{id}\" is removed")
    } else {
        format!("there is no lab \"{id}\"")
    });
    Ok(true)
}

/// Replaces this process with a command on a host of a kept lab.
fn enter(id: &str, words: &[String]) -> Result<std::convert::Infallible> {
    root()?;
    let about = state::about(id)?;
    let (host, words) = words.split_first().context("--exec needs the name of a host")?;
    if !about.hosts.contains(host) {
        bail!("there is no host \"{host}\"; the lab's hosts are {}", about.hosts.join(", "));
    }
    let directory = paths::directory(id);
    let mut namespace = Namespace::existing(&paths::namespace_name(id, host))?;
    namespace.set_etc(&directory.join("etc").join(host));

    let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
    let (program, args) = match words.split_first() {
        Some((program, args)) => (program.as_str(), args),
        None => (shell.as_str(), [].as_slice()),
    };
    let mut command = if let Some(machine) = about.machine(host)? {
        let mut nsenter = namespace.interactive("nsenter")?;
        nsenter.args(target::enter(machine)).arg(program);
        nsenter
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = about.binary.as_deref().and_then(Path::parent).map(Path::to_owned);
        let path = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path)))?;
        let authority = directory.join("conf/ca.pem");
        let mut command = namespace.interactive(program)?;
        command.env("PATH", path).env("PLS_ROUTER_CONFIG", directory.join("config.toml"));
        command.env("CURL_CA_BUNDLE", &authority).env("SSL_CERT_FILE", &authority);
        command
    };
    Err(command.args(args).exec()).with_context(|| format!("cannot run {program} on {host}"))
}

fn run(arguments: &Arguments) -> Result<bool> {
    root()?;
    let started = Instant::now();
    let nics = match arguments.nics {
        NicsArgument::One => Nics::One,
        NicsArgument::Two => Nics::Two,
    };
    let router = match arguments.router {
        RouterArgument::PlsRouter => Router::find()?,
        RouterArgument::Nftables => Router::Nftables,
    };
    let (id, routers) = (&arguments.id, arguments.routers);
    let title = title(id, nics, &router, routers);
    let options = Options {
        id: id.clone(),
        routers,
        probe_interval: PROBE_INTERVAL,
        large_file: 64 << 20,
        // As it is by default.
        health: String::new(),
        ..Options::new(nics, router, this_binary()?)
    };
    let up = || tell(&format!("{title}, up after {:.1} s", started.elapsed().as_secs_f64()));
    let story = if routers > 1 {
        ensure!(
            matches!(options.router, Router::PlsRouter(_)),
            "--routers is for pls-router, not for nftables"
        );
        let mut stage = Stage::up(options, FLEET)?;
        up();
        stage.play();
        let (story, fleet) = stage.end();
        if arguments.keep {
            fleet.keep()?;
        }
        story
    } else {
        let mut lab = Lab::up(options)?;
        up();
        let story = story::play(&mut lab)?;
        if arguments.keep {
            lab.keep()?;
        }
        story
    };
    if arguments.keep {
        tell(&how_to_enter(id, routers));
    }
    tell(&format!("{}, {:.1} s in all", story.summary(), started.elapsed().as_secs_f64()));
    Ok(story.passed())
}

fn title(id: &str, nics: Nics, router: &Router, routers: usize) -> String {
    let nics = match nics {
        Nics::One => "one NIC",
        Nics::Two => "two NICs",
    };
    let router = match router {
        Router::PlsRouter(binary) => binary.display().to_string(),
        Router::Nftables => "nftables".to_owned(),
        Router::Machine => "a machine".to_owned(),
    };
    let routers = if routers == 1 { "router".to_owned() } else { format!("{routers} routers") };
    format!(
        "the lab \"{id}\": serverless -> pls (Private Link, load balancer) -> {routers} ({nics}, {router}) -> firewall -> internet"
    )
}

fn how_to_enter(id: &str, routers: usize) -> String {
    let directory = paths::directory(id);
    let mut hosts = HOSTS.map(str::to_owned).to_vec();
    hosts.extend((2..=routers).map(|number| format!("router{number}")));
    let id = if id == DEFAULT { String::new() } else { format!(" --id {id}") };
    let (inside, logs) = if routers == 1 {
        (String::new(), "logs and configuration are".to_owned())
    } else {
        let release = directory.join(fleet::RELEASE);
        let file = |name: &str| release.join(name).display().to_string();
        let deploy = format!(
            "\x20 cargo xtask deploy status --inventory {} --ssh-config {}\n\
             \x20 cargo xtask lab{id} --exec router journalctl\n",
            file(fleet::INVENTORY),
            file(fleet::SSH_CONFIG)
        );
        (deploy, "what is deployed, and the logs of the other hosts, are".to_owned())
    };
    format!(
        "the lab is kept; its hosts are {}\n\
         \x20 cargo xtask lab{id} --exec router pls-router status\n\
         \x20 cargo xtask lab{id} --exec serverless curl https://www.example.com/\n\
         \x20 cargo xtask lab{id} --exec firewall          (a shell)\n\
         {inside}\
         \x20 cargo xtask lab{id} --down\n\
         {logs} in {}",
        hosts.join(", "),
        directory.display()
    )
}
