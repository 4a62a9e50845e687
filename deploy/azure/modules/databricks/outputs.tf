output "network_connectivity_config_id" {
  description = "The network connectivity config."
  value       = local.config_id
}

output "endpoint_rules" {
  description = "Of each rule: its id, endpoint, state (as of the last refresh), names and error."
  value = {
    for name, rule in databricks_mws_ncc_private_endpoint_rule.this : name => {
      rule_id          = rule.rule_id
      endpoint_name    = rule.endpoint_name
      connection_state = rule.connection_state
      domain_names     = rule.domain_names
      error_message    = rule.error_message
    }
  }
}

output "next_steps" {
  description = "What a person still does, and where."
  value = join("\n", compact([
    "Databricks:",
    var.approve ? "" : "- Within 14 days, approve the connections of ${join(", ", [for rule in databricks_mws_ncc_private_endpoint_rule.this : coalesce(rule.endpoint_name, "the rules")])}: in the Azure portal (Private Link Service, Private endpoint connections), or",
    var.approve ? "" : "  az network private-endpoint-connection list --id ${var.private_link_service_id}, and for each of them",
    var.approve ? "" : "  az network private-endpoint-connection approve --id CONNECTION --description ${var.name}",
    "- Account console, Cloud resources, Network connectivity configurations, ${var.name}: every rule is ESTABLISHED (`terraform apply -refresh-only` shows it too).",
    length(var.workspace_ids) > 0 ? "" : "- Attach the config to the workspaces: workspace_ids, or the account console, Workspaces, Update.",
    "- Wait 10 minutes, then restart serverless compute: what runs already does not see the new names.",
    "- If the workspaces have a network policy with restricted access, allow the names there as well.",
    "- Only these names take this way. All others leave through Databricks' own network, unless a network policy forbids it.",
  ]))
}
