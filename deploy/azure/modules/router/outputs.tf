output "private_link_service_id" {
  description = "The service's resource id: what a Databricks private endpoint rule asks for (not the alias)."
  value       = azurerm_private_link_service.this.id
}

output "private_link_service_alias" {
  description = "The service's alias, for private endpoints that are made by hand."
  value       = azurerm_private_link_service.this.alias
}

output "pls_nat_addresses" {
  description = "The addresses from which clients arrive: the `sources` of every forward."
  value       = var.pls_nat_addresses
}

output "load_balancer_frontend_address" {
  description = "The load balancer's address."
  value       = azurerm_lb.this.frontend_ip_configuration[0].private_ip_address
}

output "backend_pool_id" {
  description = "The load balancer's pool of routers."
  value       = azurerm_lb_backend_address_pool.this.id
}

output "scale_set_id" {
  description = "The scale set's resource id; null for virtual machines."
  value       = one(azurerm_linux_virtual_machine_scale_set.this[*].id)
}

output "scale_set_name" {
  description = "The scale set's name; null for virtual machines."
  value       = one(azurerm_linux_virtual_machine_scale_set.this[*].name)
}

output "virtual_machine_addresses" {
  description = "The addresses of the virtual machines, for `cargo xtask deploy`; empty for a scale set."
  value       = [for nic in azurerm_network_interface.this : nic.private_ip_address]
}

output "config" {
  description = "The routers' configuration, /etc/pls-router/config.toml."
  value       = module.cloud_init.config
}

output "user_data" {
  description = "The routers' cloud-init."
  value       = module.cloud_init.user_data
}

output "next_steps" {
  description = "What a person still does, and where."
  value = join("\n", compact([
    "Routers:",
    local.scale_set && var.surge ? "- Once per subscription, before the first upgrade: az feature register --namespace Microsoft.Compute --name MaxSurgeRollingUpgrade" : "",
    var.package == null ? "" : "- Let the routers' subnet reach ${var.package.url}: without it no router starts, and repair replaces them again and again.",
    "- Wait until the load balancer's metric \"Health Probe Status\" is 100 %: ${azurerm_lb.this.name}, Insights.",
    "  If it is not: az vmss run-command or the serial console, then `pls-router status`, and",
    "  `journalctl -u pls-router-install -u pls-router`.",
    "- Alert on that metric: repair acts on /live only, and does not touch a router that cannot reach the firewall.",
    local.scale_set ? "" : "- Another version or configuration: cargo xtask deploy ${join(" ", [for nic in azurerm_network_interface.this : nic.private_ip_address])}",
  ]))
}
