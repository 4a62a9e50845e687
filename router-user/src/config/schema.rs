//! Every table and key that a configuration may have: for "unknown key" errors, and for the test
//! that compares `deploy/config.toml` with them.

use crate::toml_reader::{Form, TableSchema};

const fn table(name: &'static str, form: Form, keys: &'static [&'static str]) -> TableSchema {
    TableSchema { name, form, keys }
}

const RULE_KEYS: &[&str] = &["name", "protocol", "listen", "target", "sources", "mss", "timeouts", "check"];
const TIMEOUT_KEYS: &[&str] = &["tcp_established", "tcp_transitory", "udp", "udp_unreplied", "icmp"];

pub(super) const INTERFACES: TableSchema = table("interfaces", Form::Single, &["pls", "firewall", "mode"]);
pub(super) const FORWARD: TableSchema = table("forward", Form::Repeated, RULE_KEYS);
pub(super) const MASQUERADE: TableSchema =
    table("masquerade", Form::Repeated, &["name", "sources", "destinations", "mss", "timeouts"]);
pub(super) const SNAT: TableSchema = table("snat", Form::Single, &["addresses", "ports", "exhausted"]);
pub(super) const ANSWERS: TableSchema = table("answers", Form::Single, &["unreachable"]);
pub(super) const LOCAL: TableSchema = table("local", Form::Single, &["allow", "others"]);
pub(super) const HEALTH: TableSchema =
    table("health", Form::Single, &["listen", "from", "self_test", "down_after", "up_after", "require"]);
pub(super) const ADMIN: TableSchema = table("admin", Form::Single, &["listen", "hosts", "socket", "pins"]);
pub(super) const LIMITS: TableSchema = table("limits", Form::Single, &["flows", "half_open_per_source"]);
pub(super) const TIMEOUTS: TableSchema = table("timeouts", Form::Single, TIMEOUT_KEYS);
/// `check` of a forward.
pub(super) const CHECK: TableSchema =
    table("check", Form::Inline, &["type", "sni", "port", "interval", "timeout", "fall", "rise", "require"]);
/// `timeouts` of a rule.
pub(super) const RULE_TIMEOUTS: TableSchema = table("timeouts", Form::Inline, TIMEOUT_KEYS);

/// All tables, in the order of the sample file.
pub const TABLES: &[TableSchema] =
    &[INTERFACES, FORWARD, MASQUERADE, SNAT, ANSWERS, LOCAL, HEALTH, ADMIN, LIMITS, TIMEOUTS];
