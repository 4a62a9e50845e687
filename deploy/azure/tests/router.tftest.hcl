mock_provider "azurerm" {}

variables {
  location             = "westeurope"
  resource_group_name  = "routers"
  router_subnet_id     = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/router"
  pls_subnet_id        = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/pls"
  pls_nat_addresses    = ["10.0.0.8", "10.0.0.9", "10.0.0.10"]
  admin_ssh_public_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleExam"
  image                = { id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/images/pls-router" }
  forwards = [
    { name = "https", listen = "443", targets = ["203.0.113.10:443"] },
    { name = "sql", listen = "1433-1434", targets = ["sql.corp.example"] },
    { name = "dns", protocol = "udp", listen = "53", targets = ["10.9.0.4"] },
  ]
}

run "load_balancer" {
  command = apply
  module { source = "./modules/router" }

  assert {
    condition     = azurerm_lb.this.sku == "Standard" && toset(azurerm_lb.this.frontend_ip_configuration[0].zones) == toset(["1", "2", "3"])
    error_message = "the frontend survives a zone's outage"
  }
  assert {
    condition     = azurerm_lb.this.frontend_ip_configuration[0].subnet_id == var.pls_subnet_id && azurerm_lb.this.frontend_ip_configuration[0].public_ip_address_id == null
    error_message = "an internal load balancer, in the service's subnet"
  }
  assert {
    condition = (
      azurerm_lb_rule.this.protocol == "All" && azurerm_lb_rule.this.frontend_port == 0 && azurerm_lb_rule.this.backend_port == 0 &&
      azurerm_lb_rule.this.tcp_reset_enabled && azurerm_lb_rule.this.idle_timeout_in_minutes == 4 && !azurerm_lb_rule.this.floating_ip_enabled
    )
    error_message = "one rule for all ports, with resets, 4 minutes, no floating IP"
  }
  assert {
    condition     = azurerm_lb_rule.this.probe_id == azurerm_lb_probe.this.id && azurerm_lb_rule.this.backend_address_pool_ids == tolist([azurerm_lb_backend_address_pool.this.id])
    error_message = "the rule goes by the probe, to the routers"
  }
}

run "balancing_asks_whether_it_forwards" {
  command = plan
  module { source = "./modules/router" }

  assert {
    condition     = azurerm_lb_probe.this.protocol == "Http" && azurerm_lb_probe.this.request_path == "/" && azurerm_lb_probe.this.port == 8082
    error_message = "the probe asks on / at the daemon's port"
  }
  assert {
    condition     = strcontains(output.config, "[health]\nlisten = \"0.0.0.0:${azurerm_lb_probe.this.port}\"")
    error_message = "the daemon answers where the probe asks"
  }
}

run "the_probe_follows_the_daemons_port" {
  command = plan
  module { source = "./modules/router" }
  variables { health_port = 9000 }

  assert {
    condition     = azurerm_lb_probe.this.port == 9000 && strcontains(output.config, "listen = \"0.0.0.0:9000\"")
    error_message = "one port for the probe and the daemon"
  }
  assert {
    condition     = azurerm_network_security_rule.probe.destination_port_range == "9000"
    error_message = "and for the security group"
  }
}

run "repair_asks_whether_it_lives" {
  command = plan
  module { source = "./modules/router" }

  assert {
    condition     = jsondecode(one(azurerm_linux_virtual_machine_scale_set.this[0].extension).settings).requestPath == "/live"
    error_message = "on / an outage of the firewall would have every router deleted"
  }
  assert {
    condition = (
      jsondecode(one(azurerm_linux_virtual_machine_scale_set.this[0].extension).settings).port == azurerm_lb_probe.this.port &&
      one(azurerm_linux_virtual_machine_scale_set.this[0].extension).type == "ApplicationHealthLinux"
    )
    error_message = "the health extension asks the same daemon"
  }
  assert {
    condition     = azurerm_linux_virtual_machine_scale_set.this[0].health_probe_id == null
    error_message = "with the load balancer's probe, repair would go by /, and the rule could not change"
  }
  assert {
    condition     = azurerm_linux_virtual_machine_scale_set.this[0].automatic_instance_repair[0].enabled
    error_message = "repair is on"
  }
}

run "no_repair" {
  command = plan
  module { source = "./modules/router" }
  variables { automatic_repair = false }

  assert {
    condition     = !azurerm_linux_virtual_machine_scale_set.this[0].automatic_instance_repair[0].enabled
    error_message = "repair is off if asked for"
  }
}

run "service" {
  command = apply
  module { source = "./modules/router" }

  assert {
    condition     = azurerm_private_link_service.this.nat_ip_configuration[*].private_ip_address == var.pls_nat_addresses
    error_message = "the NAT addresses are static, all of them, in the order given"
  }
  assert {
    condition     = azurerm_private_link_service.this.nat_ip_configuration[*].primary == tolist([true, false, false])
    error_message = "the first is the primary one, and no other"
  }
  assert {
    condition     = azurerm_private_link_service.this.load_balancer_frontend_ip_configuration_ids == toset([azurerm_lb.this.frontend_ip_configuration[0].id])
    error_message = "the service leads to the load balancer"
  }
  assert {
    condition     = !azurerm_private_link_service.this.proxy_protocol_enabled
    error_message = "no PROXY header before the client's bytes"
  }
  assert {
    condition     = output.private_link_service_id == azurerm_private_link_service.this.id && output.private_link_service_alias == azurerm_private_link_service.this.alias
    error_message = "both, the id and the alias, are outputs"
  }
}

run "the_nat_addresses_are_the_sources" {
  command = plan
  module { source = "./modules/router" }

  assert {
    condition = length(regexall(
      "(?m)^sources = ${replace(replace(replace(jsonencode([for a in var.pls_nat_addresses : "${a}/32"]), "[", "\\["), "]", "\\]"), ".", "\\.")}$", output.config
    )) == length(var.forwards)
    error_message = "every forward's sources are the NAT addresses"
  }
  assert {
    condition     = alltrue([for rule in azurerm_network_security_rule.forwards : toset(rule.source_address_prefixes) == toset(var.pls_nat_addresses)])
    error_message = "and so are the security group's"
  }
  assert {
    condition     = output.pls_nat_addresses == var.pls_nat_addresses
    error_message = "and they are an output"
  }
}

run "scale_set" {
  command = apply
  module { source = "./modules/router" }

  assert {
    condition     = toset(azurerm_linux_virtual_machine_scale_set.this[0].zones) == toset(["1", "2", "3"]) && azurerm_linux_virtual_machine_scale_set.this[0].zone_balance
    error_message = "over all zones, balanced"
  }
  assert {
    condition = (
      azurerm_linux_virtual_machine_scale_set.this[0].network_interface[0].accelerated_networking_enabled &&
      !azurerm_linux_virtual_machine_scale_set.this[0].network_interface[0].ip_forwarding_enabled &&
      length(azurerm_linux_virtual_machine_scale_set.this[0].network_interface[0].ip_configuration[0].public_ip_address) == 0
    )
    error_message = "accelerated networking, no IP forwarding, no public address"
  }
  assert {
    condition     = azurerm_linux_virtual_machine_scale_set.this[0].network_interface[0].ip_configuration[0].subnet_id == var.router_subnet_id
    error_message = "in the routers' subnet"
  }
  assert {
    condition = (
      azurerm_linux_virtual_machine_scale_set.this[0].upgrade_mode == "Rolling" &&
      azurerm_linux_virtual_machine_scale_set.this[0].rolling_upgrade_policy[0].max_batch_instance_percent == 34 &&
      azurerm_linux_virtual_machine_scale_set.this[0].rolling_upgrade_policy[0].maximum_surge_instances_enabled
    )
    error_message = "one of three after the other, the new one first"
  }
  assert {
    condition = (
      azurerm_linux_virtual_machine_scale_set.this[0].termination_notification[0].enabled &&
      azurerm_linux_virtual_machine_scale_set.this[0].termination_notification[0].timeout == "PT10M"
    )
    error_message = "a VM is told before its end, so that it drains"
  }
  assert {
    condition     = azurerm_linux_virtual_machine_scale_set.this[0].disable_password_authentication
    error_message = "no passwords"
  }
  assert {
    condition     = base64decode(azurerm_linux_virtual_machine_scale_set.this[0].custom_data) == output.user_data
    error_message = "the VMs get the cloud-init"
  }
  assert {
    condition     = length(azurerm_linux_virtual_machine.this) == 0 && output.scale_set_id == azurerm_linux_virtual_machine_scale_set.this[0].id
    error_message = "a scale set and no other VMs"
  }
}

run "virtual_machines" {
  command = apply
  module { source = "./modules/router" }
  variables {
    deployment = "virtual_machines"
    instances  = 4
  }

  assert {
    condition     = [for vm in azurerm_linux_virtual_machine.this : vm.zone] == ["1", "2", "3", "1"]
    error_message = "VMs in turn over the zones"
  }
  assert {
    condition = alltrue([
      for nic in azurerm_network_interface.this : nic.accelerated_networking_enabled && nic.ip_configuration[0].subnet_id == var.router_subnet_id
    ])
    error_message = "accelerated networking, in the routers' subnet"
  }
  assert {
    condition = (
      length(azurerm_network_interface_backend_address_pool_association.this) == 4 &&
      alltrue([for a in azurerm_network_interface_security_group_association.this : a.network_security_group_id == azurerm_network_security_group.this.id])
    )
    error_message = "all behind the load balancer and the security group"
  }
  assert {
    condition     = length(azurerm_linux_virtual_machine_scale_set.this) == 0 && output.scale_set_id == null && length(output.virtual_machine_addresses) == 4
    error_message = "no scale set"
  }
}

run "region_without_zones" {
  command = plan
  module { source = "./modules/router" }
  variables { zones = [] }

  assert {
    condition     = azurerm_lb.this.frontend_ip_configuration[0].zones == null && azurerm_linux_virtual_machine_scale_set.this[0].zones == null && !azurerm_linux_virtual_machine_scale_set.this[0].zone_balance
    error_message = "no zones at all"
  }
}

run "deny_by_default" {
  command = plan
  module { source = "./modules/router" }

  assert {
    condition = (
      azurerm_network_security_rule.deny.access == "Deny" && azurerm_network_security_rule.deny.direction == "Inbound" &&
      azurerm_network_security_rule.deny.protocol == "*" && azurerm_network_security_rule.deny.source_address_prefix == "*" &&
      azurerm_network_security_rule.deny.destination_port_range == "*" && azurerm_network_security_rule.deny.priority == 4096
    )
    error_message = "what no rule allows is denied, before Azure's own rules"
  }
  assert {
    condition     = length(azurerm_network_security_rule.ssh) == 0
    error_message = "nobody may use SSH unless named"
  }
  assert {
    condition = (
      toset(azurerm_network_security_rule.forwards["tcp"].destination_port_ranges) == toset(["443", "1433-1434"]) &&
      toset(azurerm_network_security_rule.forwards["udp"].destination_port_ranges) == toset(["53"])
    )
    error_message = "the forwarded ports and no others"
  }
}

run "package_with_identity" {
  command = plan
  module { source = "./modules/router" }
  variables {
    image = {}
    package = {
      url         = "https://example.blob.core.windows.net/p/pls-router.deb"
      sha256      = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
      identity_id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i"
    }
  }

  assert {
    condition     = azurerm_linux_virtual_machine_scale_set.this[0].identity[0].identity_ids == toset([var.package.identity_id])
    error_message = "the VMs have the identity that may read the package"
  }
  assert {
    condition     = azurerm_linux_virtual_machine_scale_set.this[0].source_image_reference[0].offer == "ubuntu-24_04-lts"
    error_message = "an image of the marketplace"
  }
}

run "neither_package_nor_image" {
  command = plan
  module { source = "./modules/router" }
  variables { image = {} }
  expect_failures = [var.package]
}

run "forward_on_the_probes_port" {
  command = plan
  module { source = "./modules/router" }
  variables { forwards = [{ name = "a", listen = "8000-8100", targets = ["10.9.0.4"] }] }
  expect_failures = [var.forwards]
}

run "one_subnet_for_both" {
  command = plan
  module { source = "./modules/router" }
  variables { pls_subnet_id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/router" }
  expect_failures = [var.pls_subnet_id]
}

run "nine_nat_addresses" {
  command = plan
  module { source = "./modules/router" }
  variables { pls_nat_addresses = [for i in range(9) : "10.0.0.${8 + i}"] }
  expect_failures = [var.pls_nat_addresses]
}

run "nat_address_as_a_network" {
  command = plan
  module { source = "./modules/router" }
  variables { pls_nat_addresses = ["10.0.0.8/29"] }
  expect_failures = [var.pls_nat_addresses]
}

run "a_single_router" {
  command = plan
  module { source = "./modules/router" }
  variables { instances = 1 }
  expect_failures = [var.instances]
}

run "a_single_zone" {
  command = plan
  module { source = "./modules/router" }
  variables { zones = ["1"] }
  expect_failures = [var.zones]
}

run "ssh_from_everywhere" {
  command = plan
  module { source = "./modules/router" }
  variables { management_sources = ["0.0.0.0/0"] }
  expect_failures = [var.management_sources]
}

run "size_without_accelerated_networking" {
  command = plan
  module { source = "./modules/router" }
  variables { vm_size = "Standard_B2s" }
  expect_failures = [var.vm_size]
}

run "private_key" {
  command = plan
  module { source = "./modules/router" }
  variables { admin_ssh_public_key = "-----BEGIN OPENSSH PRIVATE KEY-----" }
  expect_failures = [var.admin_ssh_public_key]
}
