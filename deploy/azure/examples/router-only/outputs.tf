output "private_link_service_id" {
  description = "What the Databricks private endpoint rule asks for."
  value       = module.router.private_link_service_id
}

output "private_link_service_alias" {
  description = "The service's alias."
  value       = module.router.private_link_service_alias
}

output "config" {
  description = "The routers' configuration."
  value       = module.router.config
}

output "next_steps" {
  description = "What a person still does: print it by `terraform output -raw next_steps`."
  value       = module.router.next_steps
}
