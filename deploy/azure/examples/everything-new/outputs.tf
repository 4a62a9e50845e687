output "private_link_service_id" {
  description = "What the Databricks private endpoint rule asks for."
  value       = module.router.private_link_service_id
}

output "private_link_service_alias" {
  description = "The service's alias."
  value       = module.router.private_link_service_alias
}

output "pls_nat_addresses" {
  description = "The sources of the routers' rules."
  value       = module.router.pls_nat_addresses
}

output "firewall_private_ip_address" {
  description = "The routers' next hop."
  value       = module.network.firewall_private_ip_address
}

output "firewall_public_ip_addresses" {
  description = "The addresses that targets on the internet see."
  value       = module.network.firewall_public_ip_addresses
}

output "endpoint_rules" {
  description = "The Databricks rules and their state."
  value       = module.databricks.endpoint_rules
}

output "config" {
  description = "The routers' configuration."
  value       = module.router.config
}

output "next_steps" {
  description = "What a person still does: print it by `terraform output -raw next_steps`."
  value       = join("\n", [module.network.next_steps, module.router.next_steps, module.databricks.next_steps])
}
