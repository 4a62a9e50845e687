//! The router as `deploy/azure` makes it: Terraform renders the cloud-init of its modules, and a
//! machine boots with it.

use std::{
    env, fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Nics,
    addresses::{ALLOWED_NAME, ANYWHERE, ECHO_PORT, PLS_SUBNET, TOOLS, VM},
    client, command,
    machine::Seed,
};
use serde_json::{Value, json};

use crate::{
    common::{Place, check, image, package},
    quick::{first_boot, main_pid, traffic},
    scenes::Scenes,
};

/// Names a program that takes Terraform's arguments.
const TERRAFORM_VARIABLE: &str = "LAB_TERRAFORM";

/// The module that renders cloud-init, which the module `router` uses.
const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/azure/modules/cloud-init");

/// The package's name on the lab's web server.
const PACKAGE: &str = "pls-router.deb";

#[test]
#[ignore = "takes a minute and needs Terraform: --full"]
fn the_azure_templates_make_a_router_that_forwards() {
    let (image, package, terraform) = (image(), package(), terraform());
    let mut scenes = check(Scenes::begin(&image, "the Azure templates"));
    let mut place = Place::switch_on_with(Nics::One, |lab| seed(lab, &package, &terraform));
    scenes.play("cloud-init fetches the package over HTTPS; the probe tells the truth", || {
        first_boot(&mut place)
    });
    let Place { machine, lab } = &mut place;
    scenes.play("traffic with content, one NIC", || traffic(lab));
    scenes.play("the services of the template", || {
        let pid = main_pid(machine)?;
        let shown = machine.ssh(
            "systemctl is-enabled pls-router pls-router-install pls-router-events; \
             systemctl is-active pls-router-events; ls /var/lib/pls-router-install",
        )?;
        let words: Vec<_> = shown.split_whitespace().collect();
        ensure!(words.starts_with(&["enabled", "enabled", "enabled", "active"]), "{shown}");
        Ok(format!("the daemon is {pid}; all are enabled"))
    });
    scenes.end();
}

fn terraform() -> PathBuf {
    match env::var_os(TERRAFORM_VARIABLE) {
        Some(program) => program.into(),
        None => harness::skip(format!(
            "{TERRAFORM_VARIABLE} names no Terraform, as `cargo xtask vm --machine --full` does"
        )),
    }
}

/// A seed with what Terraform renders for this lab. The package lies on its web server.
fn seed(lab: &Lab, package: &Path, terraform: &Path) -> Result<Seed> {
    let bytes = fs::read(package).context("cannot read the package")?;
    let served = lab.state().write(&format!("www/{ALLOWED_NAME}/{PACKAGE}"), bytes)?;
    let directory = lab.state().directory("tmp/terraform")?;
    let module = directory.join("module");
    command::run(Command::new("cp").arg("-r").arg(MODULE).arg(&module))?;
    let variables = directory.join("variables.tfvars.json");
    fs::write(&variables, variables_for(&client::sha256(&served)?).to_string())
        .context("cannot write variables")?;
    let run = |arguments: &[&str]| {
        let mut command = Command::new(terraform);
        command.args(arguments).current_dir(&module);
        // Nothing of this machine's own.
        command.env("TF_CLI_CONFIG_FILE", "/dev/null").env("CHECKPOINT_DISABLE", "1");
        command::run(&mut command)
    };
    run(&["apply", "-no-color", "-auto-approve", &format!("-var-file={}", variables.display())])?;
    let user_data = run(&["output", "-raw", "user_data"])?;
    Ok(Seed { user_data: Some(user_data), trusts_authority: true, ..Seed::default() })
}

/// The module's variables.
fn variables_for(sha256: &str) -> Value {
    let forward = |name: &str, protocol: &str, listen: u16, target: Ipv4Addr| json!({ "name": name, "protocol": protocol, "listen": listen.to_string(), "targets": [target.to_string()] });
    json!({
        "forwards": [
            forward("https", "tcp", 443, ANYWHERE),
            forward("echo-tcp", "tcp", ECHO_PORT, TOOLS),
            forward("echo-udp", "udp", ECHO_PORT, TOOLS),
        ],
        "sources": [PLS_SUBNET],
        "extra_config": format!("[local]\nallow = [\"tcp/22 from {VM}/32\"]\n[limits]\nflows = 65536"),
        "package": { "url": format!("https://{ALLOWED_NAME}/{PACKAGE}"), "sha256": sha256 },
    })
}
