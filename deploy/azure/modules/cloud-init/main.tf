# The configuration of a router and its cloud-init, rendered. No provider and no resource, so that
# it serves any machine with cloud-init and is checked without a cloud.

locals {
  # JSON's strings, numbers and lists are TOML's as well.
  forwards = [
    for f in var.forwards : join("\n", compact([
      "[[forward]]",
      "name = ${jsonencode(f.name)}",
      "protocol = ${jsonencode(f.protocol)}",
      "listen = ${jsonencode(f.listen)}",
      "target = ${jsonencode(f.targets)}",
      "sources = ${jsonencode([for s in var.sources : length(split("/", s)) == 2 ? s : "${s}/32"])}",
      f.mss == null ? "" : f.mss == "pmtu" ? "mss = \"pmtu\"" : "mss = ${f.mss}",
      f.check == null ? "" : format("check = { %s }", join(", ", compact([
        "type = ${jsonencode(f.check.type)}",
        f.check.sni == null ? "" : "sni = ${jsonencode(f.check.sni)}",
        f.check.port == null ? "" : "port = ${f.check.port}",
      ]))),
    ]))
  ]

  config = join("\n\n", compact(concat(
    [
      "# Written by Terraform (deploy/azure). Every key is explained in deploy/config.toml.",
      "[interfaces]\npls = ${jsonencode(var.interface)}",
    ],
    local.forwards,
    [
      # Only the platform learns the reasons of a 503; to others the status is enough.
      "[health]\nlisten = \"0.0.0.0:${var.health_port}\"\nfrom = [\"168.63.129.16\"]",
      trimspace(var.extra_config),
    ]
  )))

  user_data = templatefile("${path.module}/templates/cloud-init.yaml.tftpl", {
    # In base64 since these are files of their own, with their own indentation.
    config       = base64encode("${local.config}\n")
    install      = base64encode(file("${path.module}/files/install.sh"))
    events       = base64encode(file("${path.module}/files/events.py"))
    settings     = base64encode(local.settings)
    install_unit = base64encode(file("${path.module}/files/pls-router-install.service"))
    events_unit  = base64encode(file("${path.module}/files/pls-router-events.service"))
    lro_rule     = base64encode(file("${path.module}/files/70-pls-router-lro.rules"))
    interface    = var.interface
  })

  settings = join("", [
    for name, value in {
      PACKAGE_URL         = try(var.package.url, "")
      PACKAGE_SHA256      = try(var.package.sha256, "")
      PACKAGE_IDENTITY_ID = try(var.package.identity_id, null) == null ? "" : var.package.identity_id
      DRAIN_SECONDS       = tostring(var.drain_minutes * 60 - 30)
    } : "${name}='${value}'\n"
  ])
}
