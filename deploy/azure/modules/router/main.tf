# The load balancer, the Private Link Service and the routers behind them.

locals {
  zones = length(var.zones) == 0 ? null : var.zones
  # One VM after the other, and as many may be down meanwhile.
  one_of_all = ceil(100 / var.instances)
  identity_ids = distinct(concat(
    var.identity_ids, try(var.package.identity_id, null) == null ? [] : [var.package.identity_id]
  ))
  custom_data = base64encode(module.cloud_init.user_data)
  scale_set   = var.deployment == "scale_set"
  # A map by number, so that another number of VMs leaves the others alone.
  virtual_machines = local.scale_set ? {} : {
    for i in range(var.instances) : tostring(i) => length(var.zones) == 0 ? null : var.zones[i % length(var.zones)]
  }
}

module "cloud_init" {
  source = "../cloud-init"

  forwards      = var.forwards
  sources       = var.pls_nat_addresses
  health_port   = var.health_port
  extra_config  = var.extra_config
  package       = var.package
  drain_minutes = var.drain_minutes
}

resource "azurerm_lb" "this" {
  name                = "${var.name}-lb"
  location            = var.location
  resource_group_name = var.resource_group_name
  sku                 = "Standard"
  tags                = var.tags

  frontend_ip_configuration {
    # A frontend of another name would be another Private Link Service: this one never changes.
    name                          = "frontend"
    subnet_id                     = var.pls_subnet_id
    private_ip_address            = var.frontend_address
    private_ip_address_allocation = var.frontend_address == null ? "Dynamic" : "Static"
    zones                         = local.zones
  }
}

resource "azurerm_lb_backend_address_pool" "this" {
  name            = "routers"
  loadbalancer_id = azurerm_lb.this.id
}

# Decides which routers get new connections, so it asks whether this one forwards: path /.
resource "azurerm_lb_probe" "this" {
  name                = "forwards"
  loadbalancer_id     = azurerm_lb.this.id
  protocol            = "Http"
  port                = var.health_port
  request_path        = "/"
  interval_in_seconds = 5
  number_of_probes    = 2
}

# The only rule, all ports and protocols: which of them are forwarded is the router's configuration,
# so a new forward changes nothing here (a rule whose probe a scale set uses cannot change at all).
resource "azurerm_lb_rule" "this" {
  name                           = "all-ports"
  loadbalancer_id                = azurerm_lb.this.id
  frontend_ip_configuration_name = azurerm_lb.this.frontend_ip_configuration[0].name
  backend_address_pool_ids       = [azurerm_lb_backend_address_pool.this.id]
  probe_id                       = azurerm_lb_probe.this.id
  protocol                       = "All"
  frontend_port                  = 0
  backend_port                   = 0
  idle_timeout_in_minutes        = 4
  tcp_reset_enabled              = true
  # The VM must see its own address as the destination.
  floating_ip_enabled = false
}

resource "azurerm_private_link_service" "this" {
  name                                        = "${var.name}-pls"
  location                                    = var.location
  resource_group_name                         = var.resource_group_name
  load_balancer_frontend_ip_configuration_ids = [azurerm_lb.this.frontend_ip_configuration[0].id]
  visibility_subscription_ids                 = var.visibility_subscription_ids
  # The header would reach the target before the client's first byte, and break the probe.
  proxy_protocol_enabled = false
  tags                   = var.tags

  dynamic "nat_ip_configuration" {
    # In the order of the list, which has at most 8: keys sort as numbers do.
    for_each = { for i, address in var.pls_nat_addresses : tostring(i) => address }
    content {
      name                       = "nat-${nat_ip_configuration.key}"
      primary                    = nat_ip_configuration.key == "0"
      private_ip_address         = nat_ip_configuration.value
      private_ip_address_version = "IPv4"
      subnet_id                  = var.pls_subnet_id
    }
  }

  lifecycle {
    # A new service loses every private endpoint on it, and Databricks needs days to make new ones.
    prevent_destroy = true
  }
}

resource "azurerm_linux_virtual_machine_scale_set" "this" {
  count = local.scale_set ? 1 : 0

  name                = "${var.name}-vmss"
  location            = var.location
  resource_group_name = var.resource_group_name
  sku                 = var.vm_size
  instances           = var.instances
  zones               = local.zones
  zone_balance        = local.zones != null
  overprovision       = false
  upgrade_mode        = "Rolling"
  custom_data         = local.custom_data
  source_image_id     = var.image.id
  tags                = var.tags

  admin_username                  = var.admin_username
  disable_password_authentication = true

  admin_ssh_key {
    username   = var.admin_username
    public_key = var.admin_ssh_public_key
  }

  dynamic "source_image_reference" {
    for_each = var.image.id == null ? [var.image] : []
    content {
      publisher = source_image_reference.value.publisher
      offer     = source_image_reference.value.offer
      sku       = source_image_reference.value.sku
      version   = source_image_reference.value.version
    }
  }

  os_disk {
    caching              = "ReadOnly"
    storage_account_type = "Premium_LRS"
  }

  boot_diagnostics {}

  dynamic "identity" {
    for_each = length(local.identity_ids) == 0 ? [] : [local.identity_ids]
    content {
      type         = "UserAssigned"
      identity_ids = identity.value
    }
  }

  network_interface {
    name                           = "nic"
    primary                        = true
    accelerated_networking_enabled = true
    network_security_group_id      = azurerm_network_security_group.this.id
    # The VM receives and sends with its own address only.
    ip_forwarding_enabled = false

    ip_configuration {
      name                                   = "primary"
      primary                                = true
      subnet_id                              = var.router_subnet_id
      load_balancer_backend_address_pool_ids = [azurerm_lb_backend_address_pool.this.id]
    }
  }

  # Decides about repair and upgrades. It must NOT ask on / : there, every router says 503 when
  # the firewall or the targets are down, and the repair would delete them all.
  extension {
    name                       = "health"
    publisher                  = "Microsoft.ManagedServices"
    type                       = "ApplicationHealthLinux"
    type_handler_version       = "1.0"
    auto_upgrade_minor_version = true
    settings = jsonencode({
      protocol          = "http"
      port              = var.health_port
      requestPath       = "/live"
      intervalInSeconds = 5
      numberOfProbes    = 3
    })
  }

  automatic_instance_repair {
    enabled      = var.automatic_repair
    action       = "Replace"
    grace_period = "PT30M"
  }

  rolling_upgrade_policy {
    max_batch_instance_percent              = max(local.one_of_all, 5)
    max_unhealthy_instance_percent          = max(local.one_of_all, 5)
    max_unhealthy_upgraded_instance_percent = max(local.one_of_all, 5)
    # Time to see on the load balancer's probe metric that the new VM forwards.
    pause_time_between_batches      = "PT5M"
    maximum_surge_instances_enabled = var.surge
    # Zone by zone.
    cross_zone_upgrades_enabled = false
  }

  # Announces the end of a VM, so that it drains first (pls-router-events.service).
  termination_notification {
    enabled = true
    timeout = "PT${var.drain_minutes}M"
  }

  scale_in {
    rule = "OldestVM"
  }

  # Without the rule the scale set's VMs are in no load balancer yet.
  depends_on = [azurerm_lb_rule.this]
}

resource "azurerm_network_interface" "this" {
  for_each = local.virtual_machines

  name                           = "${var.name}-nic-${each.key}"
  location                       = var.location
  resource_group_name            = var.resource_group_name
  accelerated_networking_enabled = true
  ip_forwarding_enabled          = false
  tags                           = var.tags

  ip_configuration {
    name                          = "primary"
    subnet_id                     = var.router_subnet_id
    private_ip_address_allocation = "Dynamic"
  }
}

resource "azurerm_network_interface_security_group_association" "this" {
  for_each = local.virtual_machines

  network_interface_id      = azurerm_network_interface.this[each.key].id
  network_security_group_id = azurerm_network_security_group.this.id
}

resource "azurerm_network_interface_backend_address_pool_association" "this" {
  for_each = local.virtual_machines

  network_interface_id    = azurerm_network_interface.this[each.key].id
  ip_configuration_name   = "primary"
  backend_address_pool_id = azurerm_lb_backend_address_pool.this.id
}

resource "azurerm_linux_virtual_machine" "this" {
  for_each = local.virtual_machines

  name                  = "${var.name}-${each.key}"
  location              = var.location
  resource_group_name   = var.resource_group_name
  size                  = var.vm_size
  zone                  = each.value
  network_interface_ids = [azurerm_network_interface.this[each.key].id]
  custom_data           = local.custom_data
  source_image_id       = var.image.id
  tags                  = var.tags

  admin_username                  = var.admin_username
  disable_password_authentication = true

  admin_ssh_key {
    username   = var.admin_username
    public_key = var.admin_ssh_public_key
  }

  dynamic "source_image_reference" {
    for_each = var.image.id == null ? [var.image] : []
    content {
      publisher = source_image_reference.value.publisher
      offer     = source_image_reference.value.offer
      sku       = source_image_reference.value.sku
      version   = source_image_reference.value.version
    }
  }

  os_disk {
    caching              = "ReadOnly"
    storage_account_type = "Premium_LRS"
  }

  boot_diagnostics {}

  dynamic "identity" {
    for_each = length(local.identity_ids) == 0 ? [] : [local.identity_ids]
    content {
      type         = "UserAssigned"
      identity_ids = identity.value
    }
  }

  termination_notification {
    enabled = true
    timeout = "PT${var.drain_minutes}M"
  }

  lifecycle {
    # Of use at the first boot only, and a change would replace all VMs at once. Another
    # configuration or version goes to these VMs by `cargo xtask deploy`, with their sessions kept.
    ignore_changes = [custom_data, source_image_reference, source_image_id]
  }
}
