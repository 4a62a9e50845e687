//! The router as a package on a new machine: from its first boot, through an upgrade and a crash.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Nics,
    addresses::{ALLOWED_NAME, ECHO_PORT, ENDPOINT},
    client::{self, Tcp, Udp},
    front_page,
    machine::{Answer, Change, Machine, Traffic, Watch},
    wait,
};

use crate::{
    common::{BOOT, Place, check, image, next_version, package, seed},
    scenes::Scenes,
};

/// The time in which the service manager brings a daemon back. An emulated machine takes seconds,
/// or minutes if this one has other things to do.
pub(crate) const RESTART: Duration = Duration::from_secs(300);

/// The time that one exchange may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The place of a package on the machine.
pub(crate) const UPLOADED: &str = "/root/next.deb";

/// The messages of each connection after an event, until it counts as survived.
pub(crate) const MORE: u64 = 5;

#[test]
fn a_package_installs_upgrades_and_survives_a_crash() {
    let (image, package) = (image(), package());
    let mut scenes = check(Scenes::begin(&image, "the package, quick"));
    let mut place = Place::switch_on(Nics::Two, &seed(&package));
    scenes.play("cloud-init installs the package; the probe tells the truth", || first_boot(&mut place));
    let Place { machine, lab } = &mut place;
    scenes.play("native XDP on both NICs", || native(machine));
    scenes.play("traffic with content", || traffic(lab));
    let next = check(next_version(&package, &check(lab.state().directory("tmp/next"))));
    scenes.play("upgrade by dpkg under traffic", || {
        machine.copy(&next, UPLOADED)?;
        let before = main_pid(machine)?;
        let said = unnoticed(machine, lab, || {
            machine.ssh(&format!("DEBIAN_FRONTEND=noninteractive dpkg -i {UPLOADED} </dev/null")).map(drop)
        })?;
        let version = machine.ssh("dpkg-query -W -f '${Version}' pls-router")?;
        ensure!(version.ends_with("+next"), "version {version}");
        let after = main_pid(machine)?;
        ensure!(after != before, "the daemon {before} still runs");
        Ok(format!("{version}; {said}"))
    });
    scenes.play("kill -9 under traffic", || {
        let before = main_pid(machine)?;
        let (said, changes) = carried(machine, lab, || {
            machine.ssh(&format!("kill -9 {before}"))?;
            wait_for_another(machine, &before)
        })?;
        // A probe that the daemon had accepted ends with it. Others are not refused, and wait for
        // the next daemon.
        let answers: Vec<_> = changes.iter().map(|change| &change.answer).collect();
        let refused = changes.iter().any(|change| change.text.contains("cannot connect"));
        ensure!(
            !refused
                && (matches!(answers[..], [Answer::Status(200)])
                    || matches!(answers[..], [Answer::Status(200), Answer::None, Answer::Status(200)])),
            "the probe: {} ({})",
            told(&changes),
            texts(&changes)
        );
        Ok(format!("systemd has brought it back; {said}; the probe: {}", told(&changes)))
    });
    scenes.end();
}

/// From power-on to the first connection: before the router forwards, the probe never says that it
/// does.
pub(crate) fn first_boot(place: &mut Place) -> Result<String> {
    let Place { machine, lab } = place;
    let watch = Watch::start(machine)?;
    machine.wait_for_probe(BOOT)?;
    // Not through the balancer, which waits for a second answer.
    lab.wait_in_service(BOOT)?;
    let mut tcp = Tcp::connect(&lab.hosts.serverless, (ENDPOINT, ECHO_PORT).into(), LIMIT)?;
    tcp.echo(b"at the first chance", LIMIT)?;
    machine.wait_for_cloud_init()?;
    let changes = watch.finish();
    let ready = changes.iter().position(|change| change.answer == Answer::Status(200));
    let ready = ready.with_context(|| format!("no 200 in {changes:?}"))?;
    ensure!(ready > 0, "it answered 200 before it was switched on: {changes:?}");
    ensure!(ready + 1 == changes.len(), "it answered 200 too soon: {}", told(&changes));
    Ok(told(&changes))
}

/// Changes of the probe's answer in words.
pub(crate) fn told(changes: &[Change]) -> String {
    let one = |change: &Change| format!("{} after {:.1} s", change.answer, change.after.as_secs_f64());
    changes.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The texts of the answers.
fn texts(changes: &[Change]) -> String {
    changes.iter().map(|change| change.text.as_str()).collect::<Vec<_>>().join(" | ")
}

fn native(machine: &Machine) -> Result<String> {
    attached(machine)?;
    let status = machine.ssh("pls-router status")?;
    Ok(status.lines().next().unwrap_or_default().to_owned())
}

/// Checks that both NICs have a program in native mode.
pub(crate) fn attached(machine: &Machine) -> Result<()> {
    let shown = machine.ssh("ip link show eth0; ip link show eth1")?;
    // For a program in generic mode the word is another.
    ensure!(shown.matches(" xdp ").count() == 2, "{shown}");
    Ok(())
}

/// A page, a file and datagrams, compared byte by byte.
pub(crate) fn traffic(lab: &Lab) -> Result<String> {
    let fetched = client::curl(lab, &format!("https://{ALLOWED_NAME}/"), &[])?;
    ensure!(fetched.body == front_page(ALLOWED_NAME), "{} {}", fetched.status, fetched.error);
    let copy = lab.state().path("tmp/copy");
    let fetched = client::download(lab, &format!("https://{ALLOWED_NAME}/large.bin"), &copy)?;
    ensure!(fetched.status == 200, "{} {}", fetched.status, fetched.error);
    ensure!(client::sha256(&copy)? == client::sha256(&lab.large_file())?, "the download differs");
    let megabits = lab.options.large_file as f64 * 8e-6 / fetched.seconds;
    let udp = Udp::open(&lab.hosts.serverless, (ENDPOINT, ECHO_PORT).into())?;
    for length in (0..64).chain([255, 256, 257, 511, 512, 513, 1023, 1024, 1025]).chain(1465..=1472) {
        let datagram: Vec<u8> = (0..length).map(|at: usize| (at * 31 + length * 7) as u8).collect();
        udp.echo(&datagram, LIMIT).with_context(|| format!("{length} bytes"))?;
    }
    Ok(format!("HTTPS, 8 MiB with the right checksum ({megabits:.0} Mbit/s), datagrams of 81 lengths"))
}

/// Does something to a machine under traffic: nothing is lost, and every probe that arrives is
/// answered with 200.
pub(crate) fn unnoticed(machine: &Machine, lab: &Lab, event: impl FnOnce() -> Result<()>) -> Result<String> {
    let (said, changes) = carried(machine, lab, event)?;
    ensure!(
        matches!(&changes[..], [Change { answer: Answer::Status(200), .. }]),
        "the probe: {} ({})",
        told(&changes),
        texts(&changes)
    );
    Ok(format!("{said}, every probe answered 200"))
}

/// Does something to a machine under traffic, of which nothing is lost. Returns the probe's answers
/// as well.
fn carried(
    machine: &Machine,
    lab: &Lab,
    event: impl FnOnce() -> Result<()>,
) -> Result<(String, Vec<Change>)> {
    let traffic = Traffic::start(lab)?;
    let watch = Watch::start(machine)?;
    traffic.carry(MORE)?;
    let outcome = event().and_then(|()| traffic.carry(MORE));
    let changes = watch.finish();
    let lost = traffic.finish().nothing_lost();
    outcome?;
    let said = lost.with_context(|| format!("the probe: {}; {}", told(&changes), lab.probe_log()))?;
    Ok((said, changes))
}

/// The process id of the daemon.
pub(crate) fn main_pid(machine: &Machine) -> Result<String> {
    let pid = machine.ssh("systemctl show -P MainPID pls-router")?.trim().to_owned();
    ensure!(
        pid != "0",
        "the service does not run: {}",
        machine.ssh("systemctl status --no-pager pls-router || true")?
    );
    Ok(pid)
}

/// Waits until the service runs with another daemon, which is ready.
pub(crate) fn wait_for_another(machine: &Machine, before: &str) -> Result<()> {
    wait::until("systemd to bring the daemon back", RESTART, || {
        let now = machine.ssh("systemctl show -p MainPID -p ActiveState pls-router")?;
        let ready = now.contains("ActiveState=active");
        ensure!(ready && main_pid(machine)? != before, "{now}");
        Ok(())
    })
}
