//! All else that can happen to a router in its service's life: what systemd does with it, a clock
//! that is set, a full disk, reboots, and its end.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Nics,
    addresses::{ALLOWED_NAME, DENIED_NAME, ECHO_PORT, ENDPOINT, IPERF_PORT, TOOLS},
    client::{self, Direction, Tcp, Udp},
    machine::{Answer, Machine, Traffic, Watch},
    wait,
};

use crate::{
    common::{BOOT, Place, check, image, package, seed},
    guides,
    quick::{MORE, RESTART, first_boot, main_pid, told, traffic, unnoticed, wait_for_another},
    scenes::Scenes,
};

/// The time that one exchange may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The time in which the probe's answer changes.
pub(crate) const PROBE: Duration = Duration::from_secs(180);

#[test]
#[ignore = "takes several minutes: --full"]
fn a_router_lives_through_all_that_happens_to_a_machine() {
    let (image, package) = (image(), package());
    let mut scenes = check(Scenes::begin(&image, "the life of a machine, full"));
    let mut place = Place::switch_on(Nics::Two, &seed(&package));
    scenes.play("cloud-init installs the package", || first_boot(&mut place));
    let Place { machine, lab } = &mut place;
    scenes.play("the lab's traffic, in Linux 6.1", || all_traffic(lab));
    scenes.play("sandbox", || sandbox(machine));
    scenes.play("systemctl restart under traffic", || {
        let before = main_pid(machine)?;
        let kept = machine.ssh("systemctl show -P NFileDescriptorStore pls-router")?;
        ensure!(kept.trim() != "0", "systemd keeps no descriptors");
        let said = unnoticed(machine, lab, || machine.ssh("systemctl restart pls-router").map(drop))?;
        ensure!(main_pid(machine)? != before, "the daemon was not restarted");
        Ok(format!("{} descriptors kept; {said}", kept.trim()))
    });
    scenes.play("a daemon that hangs (SIGSTOP)", || watchdog(machine, lab));
    scenes.play("MemoryMax is hit", || out_of_memory(machine, lab));
    scenes.play("the clock is set forth and back by an hour", || clock(machine, lab));
    scenes.play("drain and undrain", || drain(machine, lab));
    scenes.play("the socket unit", || socket_unit(machine, lab));
    scenes.play("the disk is full", || full_disk(machine, lab));
    scenes.play("the journal", || journal(machine));
    scenes.play("reboot", || {
        let watch = Watch::start(machine)?;
        machine.reboot(BOOT)?;
        machine.wait_for_probe(BOOT)?;
        back(machine, lab, watch)
    });
    scenes.play("the power is cut", || {
        let watch = Watch::start(machine)?;
        machine.reset()?;
        wait::until("the machine to go down", PROBE, || {
            ensure!(watch.changes().iter().any(|change| change.answer == Answer::None), "it answers");
            Ok(())
        })?;
        machine.wait_for_probe(BOOT)?;
        back(machine, lab, watch)
    });
    scenes.play("purge", || purge(machine));
    scenes.play("the commands of the guides", || guides::commands(machine));
    scenes.end();
}

/// Sends most kinds of traffic of the lab, once each.
fn all_traffic(lab: &Lab) -> Result<String> {
    let said = traffic(lab)?;
    let denied = client::curl(lab, &format!("http://{DENIED_NAME}/"), &[])?;
    ensure!(denied.status == 470, "{DENIED_NAME}: {} {}", denied.status, denied.error);
    let denied = client::curl(lab, &format!("https://{DENIED_NAME}/"), &[])?;
    // 35: the handshake failed, because the firewall closed the connection.
    ensure!(denied.exit == 35, "{DENIED_NAME}: {} {}", denied.exit, denied.error);
    let url = format!("https://{ALLOWED_NAME}/upload/copy");
    let put = client::upload(lab, &lab.large_file(), &url)?;
    ensure!(put.status == 201, "upload: {} {}", put.status, put.error);
    let same = client::sha256(&lab.uploaded(ALLOWED_NAME, "copy"))? == client::sha256(&lab.large_file())?;
    ensure!(same, "the upload differs");
    let large: Vec<u8> = (0..4000).map(|at: usize| (at * 31) as u8).collect();
    Udp::open(&lab.hosts.serverless, (ENDPOINT, ECHO_PORT).into())?.fragmentable()?.echo(&large, LIMIT)?;
    let answers = client::ping(&lab.hosts.vm, TOOLS, 10, &[])?;
    ensure!(answers == 10, "{answers} of 10 pings through the masquerade were answered");
    let target = (ENDPOINT, IPERF_PORT).into();
    let rate = |direction| client::iperf3(&lab.hosts.serverless, target, direction, &["--time", "2"]);
    let (up, down) = (rate(Direction::Up)?, rate(Direction::Down)?);
    Ok(format!(
        "{said}, denied names, an upload, 4,000 bytes in fragments, pings, iperf3 {:.0} and {:.0} Mbit/s",
        up / 1e6,
        down / 1e6
    ))
}

fn sandbox(machine: &Machine) -> Result<String> {
    let shown =
        machine.ssh("systemctl show -p Type -p NotifyAccess -p WatchdogUSec -p NRestarts pls-router")?;
    ensure!(shown.contains("Type=notify"), "{shown}");
    ensure!(!shown.contains("WatchdogUSec=0") && !shown.contains("WatchdogUSec=infinity"), "{shown}");
    let security = machine.ssh("systemd-analyze security --no-pager pls-router | tail -n 1")?;
    let level = security.split(": ").nth(1).with_context(|| format!("no level in {security}"))?;
    let number: f64 = level.split_whitespace().next().unwrap_or_default().parse()?;
    // Without a sandbox it is 9.6.
    ensure!(number < 5.0, "{security}");
    Ok(format!("Type=notify, a watchdog; systemd-analyze security: {}", level.trim()))
}

/// A daemon that neither runs nor ends: systemd kills it and starts another. The programs forward
/// meanwhile. The probe does not answer, so the load balancer takes the router out of service.
fn watchdog(machine: &Machine, lab: &Lab) -> Result<String> {
    let before = main_pid(machine)?;
    let traffic = Traffic::start(lab)?;
    let watch = Watch::start(machine)?;
    traffic.carry(MORE)?;
    machine.ssh(&format!("kill -STOP {before}"))?;
    // Of the unit: 30 s, and then it starts.
    let came_back = wait_for_another(machine, &before);
    let carried = traffic.carry(MORE);
    let lost = traffic.finish().no_session_lost();
    came_back?;
    carried?;
    let said = machine.ssh("journalctl -u pls-router --no-pager -n 50")?;
    ensure!(said.contains("Watchdog timeout"), "{said}");
    let changes = watch.finish();
    Ok(format!("systemd started another; {}; the probe: {}", lost?, told(&changes)))
}

/// The limit of a real cgroup, below what the daemon has: the kernel kills it, and systemd starts
/// another. Until one lives, the load balancer may have the router out of service.
fn out_of_memory(machine: &Machine, lab: &Lab) -> Result<String> {
    let before = main_pid(machine)?;
    let traffic = Traffic::start(lab)?;
    traffic.carry(MORE)?;
    machine.ssh("systemctl set-property --runtime pls-router MemoryMax=4M")?;
    let killed = wait::until("the kernel to kill it", RESTART, || {
        let said = machine.ssh("journalctl -u pls-router --no-pager -n 50")?;
        ensure!(said.contains("oom-kill"), "{said}");
        Ok(())
    });
    machine.ssh("systemctl set-property --runtime pls-router MemoryMax=infinity")?;
    let came_back = wait_for_another(machine, &before);
    let carried = traffic.carry(MORE);
    let lost = traffic.finish().no_session_lost();
    killed?;
    came_back?;
    carried?;
    Ok(format!("killed by the kernel, and started again by systemd; {}", lost?))
}

fn clock(machine: &Machine, lab: &Lab) -> Result<String> {
    let said = unnoticed(machine, lab, || {
        for (step, wait) in [("+1 hour", "forward"), ("-2 hours", "back"), ("+1 hour", "forward")] {
            let before = count(machine, wait)?;
            machine.ssh(&format!("date -s '{step}'"))?;
            wait::until("the log to tell that the clock was set", LIMIT, || {
                ensure!(count(machine, wait)? == before + 1, "it does not say {wait}");
                Ok(())
            })?;
        }
        Ok(())
    })?;
    // Not more than once each.
    let (forward, back) = (count(machine, "forward")?, count(machine, "back")?);
    ensure!((forward, back) == (2, 1), "told {forward} and {back} times");
    Ok(format!("told once each; {said}"))
}

/// Counts the lines of the log that tell that the clock was set that way.
fn count(machine: &Machine, way: &str) -> Result<u32> {
    let count = machine.ssh(&format!(
        "journalctl -u pls-router --no-pager -o cat | grep -c 'the clock of this machine was set {way}' || true"
    ))?;
    count.trim().parse().with_context(|| format!("{count} is no number"))
}

fn drain(machine: &Machine, lab: &Lab) -> Result<String> {
    let mut tcp = Tcp::connect(&lab.hosts.serverless, (ENDPOINT, ECHO_PORT).into(), LIMIT)?;
    tcp.echo(b"before", LIMIT)?;
    machine.ssh("pls-router drain")?;
    lab.wait_out_of_service(PROBE)?;
    let (status, text) = machine.probe()?;
    ensure!(status == 503 && text.contains("drain"), "{status} {text}");
    tcp.echo(b"while it drains", LIMIT)?;
    // A drain outlives the daemon.
    let before = main_pid(machine)?;
    machine.ssh("systemctl restart pls-router")?;
    wait_for_another(machine, &before)?;
    let (status, _) = machine.probe()?;
    ensure!(status == 503, "{status} after a restart");
    machine.ssh("pls-router undrain")?;
    lab.wait_in_service(PROBE)?;
    tcp.echo(b"after", LIMIT)?;
    Ok("503 and out of service, also over a restart; the open connection goes on".to_owned())
}

/// systemd opens the probe's port, as `docs/package.md` says: no probe is refused over a restart,
/// and the port is closed when the service is stopped.
fn socket_unit(machine: &Machine, lab: &Lab) -> Result<String> {
    let change = |verb: &str| {
        machine.ssh(&format!(
            "systemctl stop pls-router && systemctl {verb} pls-router.socket && systemctl start pls-router"
        ))
    };
    change("enable")?;
    lab.wait_in_service(PROBE)?;
    let owners = machine.ssh("ss -Hltnp 'sport = :8082'")?;
    ensure!(owners.contains("\"systemd\"") && owners.contains("\"pls-router\""), "{owners}");
    let said = unnoticed(machine, lab, || machine.ssh("systemctl restart pls-router").map(drop))?;
    machine.ssh("systemctl stop pls-router")?;
    wait::until("the port to be closed", LIMIT, || {
        let owners = machine.ssh("ss -Hltnp 'sport = :8082'")?;
        ensure!(owners.trim().is_empty(), "{owners}");
        Ok(())
    })?;
    change("disable")?;
    lab.wait_in_service(PROBE)?;
    Ok(format!("opened by systemd and closed with the service; a restart: {said}"))
}

/// No byte can be written: the daemon runs on, restarts, and takes a changed configuration.
fn full_disk(machine: &Machine, lab: &Lab) -> Result<String> {
    // The last blocks too.
    machine.ssh(
        "fallocate -l $(($(df --output=avail / | tail -n 1) - 1024))KiB /fill.most; \
         for size in 64k 4k; do dd if=/dev/zero of=/fill.$size bs=$size 2>/dev/null; done; true",
    )?;
    let free = machine.ssh("df --output=avail / | tail -n 1")?;
    let said = unnoticed(machine, lab, || {
        ensure!(free.trim() == "0", "{free} KiB are free");
        machine.ssh("pls-router reload")?;
        let before = main_pid(machine)?;
        machine.ssh("systemctl restart pls-router")?;
        wait_for_another(machine, &before)
    });
    machine.ssh("rm -f /fill.*")?;
    Ok(format!("a reload and a restart succeed; {}", said?))
}

fn journal(machine: &Machine) -> Result<String> {
    let lines = machine.ssh("journalctl -u pls-router --no-pager -o cat | wc -l")?;
    let errors = machine.ssh("journalctl -u pls-router --no-pager -o cat -p err _COMM=pls-router || true")?;
    ensure!(errors.trim().is_empty() || errors.contains("No entries"), "errors: {errors}");
    let first = machine.ssh("journalctl -u pls-router --no-pager -o cat | grep -m 1 running")?;
    Ok(format!("{} lines, no error of the daemon, \"{}\"", lines.trim(), first.trim()))
}

/// After a boot: what was there is there again, and the probe has never told otherwise.
fn back(machine: &Machine, lab: &Lab, watch: Watch) -> Result<String> {
    lab.wait_in_service(PROBE)?;
    let said = traffic(lab)?;
    let changes = watch.finish();
    let rules = machine.ssh("pls-router rules | wc -l; systemctl is-enabled pls-router")?;
    ensure!(rules.contains("enabled"), "{rules}");
    // 200 until it goes down, and again when it forwards: nothing in between.
    let good = changes.iter().filter(|change| change.answer == Answer::Status(200)).count();
    ensure!(good <= 2, "the probe: {}", told(&changes));
    Ok(format!("the probe: {}; {said}", told(&changes)))
}

/// Nothing of it is left.
fn purge(machine: &Machine) -> Result<String> {
    machine.ssh("DEBIAN_FRONTEND=noninteractive dpkg --purge pls-router </dev/null")?;
    nothing_is_left(machine)
}

/// Checks that a purged package has left no files, units, group, pins or programs.
pub(crate) fn nothing_is_left(machine: &Machine) -> Result<String> {
    let left = machine.ssh(
        "find / -xdev -name '*pls-router*' -not -path '/proc/*' -not -path '/var/log/*' -not -path '/root/*' \
         -not -path '/var/lib/cloud/*' -not -path '/var/cache/*'; \
         find /run /tmp /var/tmp /sys/fs/bpf -name '*pls-router*' 2>/dev/null; \
         ip link show | grep -o 'xdp id .*'; \
         systemctl list-unit-files --no-legend 'pls-router*'; getent group pls-router; true",
    )?;
    ensure!(left.trim().is_empty(), "left: {left}");
    Ok("no file, unit, group, pin or program is left".to_owned())
}
