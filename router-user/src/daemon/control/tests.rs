use std::{
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::bail;
use router_common::ports::PortRange;

use super::{replace::OfInstance, *};
use crate::{
    daemon::{
        kernel::own_traffic::OwnTraffic,
        names::resolved::Resolved,
        sync::{Locked, Work},
    },
    port_plan::{self, Kernel},
};

/// A data plane that remembers what it is told.
#[derive(Default)]
struct Recorder {
    /// The rule sets that were put in force.
    specs: Locked<Vec<RuleSetSpec>>,
    half_open_limit: Locked<Option<u32>>,
    fails: AtomicBool,
    /// The state that has to be free while rules are written.
    state: OnceLock<State>,
}

impl RuleWriter for Recorder {
    fn put_in_force(&self, spec: &RuleSetSpec) -> Result<u32> {
        if let Some(state) = self.state.get() {
            let State {
                config,
                draining,
                attachments,
                own_traffic,
                names,
                target_health,
                removed_timeouts,
                routing,
                sessions,
                rules_version,
                rules_in_force,
                rules_error,
                self_test,
            } = state;
            assert!(
                !config.is_locked()
                    && !draining.is_locked()
                    && !attachments.is_locked()
                    && !own_traffic.is_locked()
            );
            assert!(!removed_timeouts.is_locked());
            assert!(!names.is_locked() && !target_health.is_locked() && !routing.is_locked());
            assert!(!sessions.is_locked() && !rules_version.is_locked() && !rules_error.is_locked());
            assert!(!rules_in_force.is_locked() && !self_test.is_locked());
        }
        if self.fails.load(Ordering::Relaxed) {
            bail!("no memory");
        }
        let mut specs = self.specs.lock();
        specs.push(spec.clone());
        Ok(u32::try_from(specs.len())?)
    }

    fn follow_up(&self, _spec: &RuleSetSpec, _version: u32) -> Result<()> {
        Ok(())
    }

    fn set_half_open_limit(&self, limit: u32) -> Result<()> {
        self.half_open_limit.set(Some(limit));
        Ok(())
    }

    fn choose_ports(&self, config: &Config) -> PortRange {
        port_plan::snat_ports(config, &Kernel::read())
    }
}

/// Every name is 10.1.0.7.
struct Seven;

impl Resolve for Seven {
    fn resolve<'a>(
        &'a self,
        config: &'a Config,
        known: &'a Names,
        _own: &'a OwnAddresses,
    ) -> BoxFuture<'a, Names> {
        let new = desired::target_names(config).filter(|name| !known.contains_key(*name));
        let names = new.map(|name| (name.clone(), Resolved::of(vec![[10, 1, 0, 7].into()]))).collect();
        Box::pin(std::future::ready(names))
    }
}

fn parse(text: &str) -> Config {
    Config::parse(text, Path::new("test.toml")).expect("a configuration").config
}

/// A configuration with a rule that leads to this target, and something more.
fn config(target: &str, more: &str) -> Config {
    parse(&format!(
        "[interfaces]\npls = \"eth0\"\n[[forward]]\nname = \"web\"\nprotocol = \"tcp\"\nlisten = \"443\"\n\
         target = \"{target}\"\nsources = [\"10.0.2.64/26\"]\n{more}"
    ))
}

fn control(config: Config) -> (Control, Arc<Recorder>) {
    let own = OwnTraffic::choose(&config, &Kernel::read());
    let state = State::new(config, Vec::new(), own, Names::new());
    let recorder = Arc::new(Recorder::default());
    recorder.state.set(state.clone()).map_err(drop).expect("set once");
    let control = Control::new(
        state,
        recorder.clone(),
        Arc::new(Seven),
        Requests::new(),
        Arc::default(),
        Work::default(),
    );
    (control, recorder)
}

/// Has rules applied, as the control loop does.
async fn apply(control: &Control) -> Result<()> {
    control.apply().await.expect("it does not crash")
}

#[tokio::test]
async fn only_what_differs_from_what_is_in_force_is_written() {
    let (control, recorder) = control(config("203.0.113.10", ""));
    for _ in 0..3 {
        apply(&control).await.expect("rules");
    }
    assert_eq!((recorder.specs.lock().len(), control.state.rules_version.get()), (1, 1));
    control.state.config.set(Arc::new(config("203.0.113.11", "")));
    apply(&control).await.expect("rules");
    let specs = recorder.specs.get();
    assert_eq!(specs.len(), 2);
    assert_eq!(specs[1].forwards[0].targets, [([203, 0, 113, 11].into(), None)]);
}

#[tokio::test]
async fn rules_that_were_not_written_are_written_at_the_next_look() {
    let (control, recorder) = control(config("203.0.113.10", ""));
    recorder.fails.store(true, Ordering::Relaxed);
    assert!(apply(&control).await.is_err());
    assert_eq!(control.state.rules_error.get().as_deref(), Some("no memory"), "for `status`");
    assert_eq!(control.state.rules_in_force.get(), None);
    recorder.fails.store(false, Ordering::Relaxed);
    apply(&control).await.expect("rules");
    assert_eq!((recorder.specs.lock().len(), control.state.rules_error.get()), (1, None));
    // The rules in force stay known while others are refused.
    let in_force = || control.state.rules_in_force.get().map(|spec| spec.forwards[0].targets.clone());
    recorder.fails.store(true, Ordering::Relaxed);
    control.state.config.set(Arc::new(config("203.0.113.11", "")));
    assert!(apply(&control).await.is_err());
    assert_eq!(in_force(), Some(vec![([203, 0, 113, 10].into(), None)]));
    recorder.fails.store(false, Ordering::Relaxed);
    apply(&control).await.expect("rules");
    assert_eq!(in_force(), Some(vec![([203, 0, 113, 11].into(), None)]));
}

#[tokio::test]
async fn another_configuration_is_put_in_force() {
    let (control, recorder) = control(config("old.example.com", ""));
    control.state.names.lock().insert("old.example.com".to_owned(), Resolved::of(vec![[10, 1, 0, 1].into()]));
    apply(&control).await.expect("rules");
    let more = "[timeouts]\nudp = \"999s\"\n[limits]\nhalf_open_per_source = 77\n";
    control.replace(config("new.example.com:8443", more)).await.expect("it is put in force");
    let targets = |at: usize| recorder.specs.lock()[at].forwards[0].targets.clone();
    assert_eq!(targets(0), [([10, 1, 0, 1].into(), None)]);
    assert_eq!(targets(1), [([10, 1, 0, 7].into(), Some(8443))], "resolved before it is put in force");
    let config = control.state.config.get();
    assert_eq!(config.timeouts.udp, Duration::from_secs(999));
    assert_eq!(control.state.names.lock().keys().collect::<Vec<_>>(), ["new.example.com"]);
    assert_eq!(recorder.half_open_limit.get(), Some(77));
    // The name service and the control loop are told.
    control.names_changed.notified().await;
    control.requests.turn().await;
}

#[tokio::test]
async fn a_configuration_that_cannot_be_written_changes_nothing() {
    let (control, recorder) = control(config("203.0.113.10", ""));
    apply(&control).await.expect("rules");
    recorder.fails.store(true, Ordering::Relaxed);
    let more = "[limits]\nhalf_open_per_source = 77\n";
    let refused = control.replace(config("new.example.com", more)).await;
    assert!(matches!(refused, Err(ReplaceError::NotWritten(_))), "{refused:?}");
    assert_eq!(*control.state.config.get(), config("203.0.113.10", ""));
    assert!(control.state.names.lock().is_empty());
    let ports = control.state.own_traffic.lock().session_ports().snat;
    let limit = config("203.0.113.10", "").half_open_per_source(ports.size());
    assert_eq!(recorder.half_open_limit.get(), Some(limit));
    // The wanted rules are in force: `status` is not degraded once that is looked at.
    apply(&control).await.expect("rules");
    assert_eq!(control.state.rules_error.get(), None);
}

#[tokio::test]
async fn what_takes_another_instance_is_refused_by_name() {
    let target = "203.0.113.10";
    let (control, recorder) = control(config(target, ""));
    let refused = async |wanted: Config| match control.replace(wanted).await {
        Err(ReplaceError::NeedsInstance(keys)) => keys,
        other => panic!("{other:?}"),
    };
    for (more, key) in [
        ("[admin]\npins = \"/sys/fs/bpf/other\"\n", OfInstance::Pins),
        ("[limits]\nflows = 2048\n", OfInstance::Flows),
        ("[health]\nlisten = \"0.0.0.0:9999\"\n", OfInstance::ProbeListener),
        ("[health]\nfrom = [\"10.9.0.0/16\"]\n", OfInstance::Probers),
        ("[admin]\nlisten = \"127.0.0.1:9999\"\n", OfInstance::AdminListener),
        ("[admin]\nsocket = \"/run/other/api.sock\"\n", OfInstance::ApiSocket),
    ] {
        assert_eq!(refused(config(target, more)).await, [key], "{more}");
    }
    let mut other = config(target, "");
    other.interfaces.firewall = "eth1".to_owned();
    other.limits.flows = 2048;
    assert_eq!(refused(other).await, [OfInstance::Interfaces, OfInstance::Flows]);
    let text = ReplaceError::NeedsInstance(vec![OfInstance::Mode, OfInstance::Pins]).to_string();
    assert!(
        text.starts_with("interfaces.mode, admin.pins cannot change") && text.contains("\n  fix: "),
        "{text}"
    );
    assert!(recorder.specs.lock().is_empty());
}

#[tokio::test]
async fn new_sessions_get_other_ports() {
    let target = "203.0.113.10";
    let (control, recorder) = control(config(target, ""));
    control.replace(config(target, "[snat]\nports = \"2000-2999\"\n")).await.expect("it is put in force");
    let ports = PortRange { first: 2000, last: 2999 };
    assert_eq!(recorder.specs.lock()[0].ports, ports);
    assert_eq!(control.state.own_traffic.lock().snat, ports);
    assert_eq!(recorder.half_open_limit.get(), Some(500), "half of the ports");
    control.replace(config(target, "")).await.expect("it is put in force");
    assert_eq!(
        control.state.own_traffic.lock().snat,
        port_plan::snat_ports(&config(target, ""), &Kernel::read())
    );
}

#[tokio::test]
async fn sessions_of_a_removed_rule_keep_its_timeouts() {
    let target = "203.0.113.10";
    let mut before = config(target, "");
    before.forwards[0].timeouts.udp = Duration::from_secs(999);
    let (control, _) = control(before);
    let mut renamed = config(target, "");
    renamed.forwards[0].name = "other".to_owned();
    control.replace(renamed).await.expect("it is put in force");
    let udp = |name: &str| control.state.removed_timeouts.lock().get(name).map(|timeouts| timeouts.udp);
    assert_eq!((udp("web"), udp("other")), (Some(Duration::from_secs(999)), None));
    control.replace(config(target, "")).await.expect("it is put in force");
    assert_eq!(udp("web"), None, "it has its own again");
}
