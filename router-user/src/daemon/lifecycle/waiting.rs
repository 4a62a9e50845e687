//! A start before its interfaces are there: a driver that is loaded late, a name that udev gives
//! later, an address that DHCP has yet to bring.
//!
//! Nothing can be attached yet, and there is nothing wrong that time does not mend. So the daemon
//! waits, and answers for itself meanwhile: the probe 503, `status` and the metrics with the
//! conditions.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use futures_util::StreamExt as _;
use sd_notify::NotifyState;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::{
    listeners::{Inherited, Listeners, is_managed},
    signals::Signals,
};
use crate::{
    config::Config,
    daemon::{kernel::netlink, serve::waiting::Waiting},
    health::Id,
    preflight::{self, Finding, Severity},
};

/// The period of looks without a message of the kernel.
const PERIOD: Duration = Duration::from_secs(5);
/// The time for which messages are gathered: an interface that appears makes several.
const SETTLE: Duration = Duration::from_millis(20);

/// Waits until the interfaces exist, are up and have the addresses that they need; not at all if
/// they do. `path` is the configuration's file. Returns the sockets to answer on; `None` if the
/// daemon is to stop.
///
/// # Errors
/// Returns an error if a socket cannot be made, or the kernel cannot be asked.
pub(crate) async fn for_interfaces(
    path: &Path,
    config: &Config,
    inherited: Inherited,
    signals: &mut Signals,
) -> Result<Option<Inherited>> {
    // From before the first look, so that nothing is missed.
    let mut changes = netlink::watch()?;
    let Some(missing) = look(config).await else { return Ok(Some(inherited)) };
    let listeners = Listeners::bind(config, inherited)?;
    let kernel = netlink::connect()?;
    let waiting = Waiting::new(config, path, &kernel.addresses().await?, missing);
    let mut services = waiting.serve(listeners.serve()?);
    let start = Instant::now();
    let mut said = BTreeSet::new();
    loop {
        say(&waiting.findings(), &mut said);
        tokio::select! {
            () = signals.stop() => {
                let _ = sd_notify::notify(&[NotifyState::Stopping]);
                if !is_managed() {
                    listeners.remove();
                }
                return Ok(None);
            }
            Some(ended) = services.join_next() => {
                ended.context("a part of the daemon has crashed")?.context("a part of the daemon has failed")?;
                bail!("a part of the daemon has ended");
            }
            change = changes.next() => {
                change.context("the netlink connection has ended")?;
                sleep(SETTLE).await;
            }
            () = sleep(PERIOD) => {}
        }
        match look(config).await {
            Some(missing) => waiting.set(&kernel.addresses().await?, missing),
            None => break,
        }
    }
    services.shutdown().await;
    info!("the interfaces are there after {:.1} s", start.elapsed().as_secs_f64());
    let _ = sd_notify::notify(&[NotifyState::Status("")]);
    listeners.inherit().map(Some)
}

/// Returns what the start has to wait for; `None` if there is nothing, or if something else is
/// wrong, which waiting does not mend.
async fn look(config: &Config) -> Option<Vec<Finding>> {
    let facts = preflight::inspect(config).await;
    worth_waiting_for(preflight::findings(config, &facts))
}

fn worth_waiting_for(findings: Vec<Finding>) -> Option<Vec<Finding>> {
    let is_awaited =
        |id: Id| matches!(id, Id::InterfaceMissing | Id::InterfaceDown | Id::SourceAddressMissing);
    // Without its interface, no address is there. With one, the addresses that it has are taken for
    // all that it will have.
    let is_consequence = |id: Id| matches!(id, Id::ListenAddressMissing | Id::SnatAddressMissing);
    let errors: Vec<Finding> =
        findings.into_iter().filter(|finding| finding.severity == Severity::Error).collect();
    let can_wait = errors.iter().any(|error| is_awaited(error.id))
        && errors.iter().all(|error| is_awaited(error.id) || is_consequence(error.id));
    can_wait.then_some(errors)
}

/// Tells the log and the service manager what the daemon waits for, each thing once.
fn say(findings: &[Finding], said: &mut BTreeSet<String>) {
    for Finding { text, fix, .. } in findings {
        if said.insert(text.clone()) {
            warn!("waiting: {text}; if that stays so: {fix}");
        }
    }
    let texts: Vec<&str> = findings.iter().map(|finding| finding.text.as_str()).collect();
    let status = format!("Waiting: {}", texts.join("; "));
    // Ready, or whatever is ordered after this unit, the end of the boot among it, would wait as
    // well, and the start would time out.
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, id: Id) -> Finding {
        let (subject, text, fix) = (String::new(), id.as_str().to_owned(), String::new());
        Finding { id, subject, severity, text, fix }
    }

    #[test]
    fn only_what_time_mends_is_waited_for() {
        let waits = |errors: &[Id]| {
            let mut findings = vec![finding(Severity::Warning, Id::KernelForwards)];
            findings.extend(errors.iter().map(|id| finding(Severity::Error, *id)));
            worth_waiting_for(findings).map(|errors| errors.len())
        };
        assert_eq!(waits(&[]), None);
        assert_eq!(waits(&[Id::InterfaceMissing]), Some(1));
        assert_eq!(waits(&[Id::InterfaceDown, Id::SourceAddressMissing]), Some(2));
        assert_eq!(waits(&[Id::InterfaceMissing, Id::ListenAddressMissing]), Some(2));
        assert_eq!(waits(&[Id::ListenAddressMissing]), None, "a wrong address");
        assert_eq!(waits(&[Id::InterfaceMissing, Id::InterfaceTwice]), None);
        assert_eq!(waits(&[Id::KernelTooOld]), None);
    }
}
