output "config" {
  description = "The configuration, /etc/pls-router/config.toml."
  value       = "${local.config}\n"
}

output "user_data" {
  description = "The cloud-init, for `custom_data` after base64encode()."
  value       = local.user_data

  precondition {
    condition     = length(base64encode(local.user_data)) <= 65536
    error_message = "The cloud-init is larger than Azure takes (64 KB): shorten extra_config or the forwards."
  }
}
