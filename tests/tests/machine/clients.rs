//! Real clients through Linux 6.1: those of the tests `clients`, in one lab.

use anyhow::Result;
use lab::{
    Lab, Nics,
    clients::{self, Act, bulk, database, dns, fragments, git, mtu, shell, stun, trace, web},
    machine::Machine,
};

use crate::{
    common::{Place, check, image, package, seed},
    quick::first_boot,
    scenes::Scenes,
};

/// The clients, one after the other in one lab.
const ACTS: &[(&str, Act)] = &[
    ("curl: HTTP/1.1", web::http_1_1_downloads_and_uploads_on_one_connection),
    ("curl: HTTP/2", web::http_2_multiplexes_on_one_connection),
    ("dig: UDP and TCP", dns::names_resolve_over_udp_and_tcp),
    ("dig: an answer in fragments", dns::large_answers_come_in_fragments),
    ("git: push, clone, fetch", git::repositories_are_pushed_cloned_and_fetched),
    ("ssh and scp", shell::commands_run_and_files_are_copied),
    ("psql: PostgreSQL", database::rows_come_back_as_they_were_put_in),
    ("iperf3: 128 streams", bulk::all_of_128_parallel_streams_transfer),
    ("datagrams of 64 KB", fragments::datagrams_of_64_kb_go_both_ways),
    ("pings of 64 KB", fragments::large_pings_are_answered),
    ("STUN: mapping and filtering", stun::mappings_are_endpoint_independent_and_filters_are_not),
    ("STUN: padded", stun::padded_requests_are_answered),
    ("STUN: two clients with the same port", stun::two_clients_with_the_same_port_are_kept_apart),
    ("traceroute", trace::traceroute_shows_every_hop_with_two_nics),
    ("traceroute to the endpoint", trace::traceroute_to_the_endpoint_shows_only_the_endpoint),
    ("mtr", trace::mtr_reports_every_hop),
    ("tracepath", trace::tracepath_shows_every_hop),
];

#[test]
#[ignore = "takes minutes: --full"]
fn real_clients_are_served() {
    let (image, package) = (image(), package());
    let mut scenes = check(Scenes::begin(&image, "real clients, in Linux 6.1"));
    let mut place = Place::switch_on(Nics::Two, &seed(&package));
    scenes.play("cloud-init installs the package", || first_boot(&mut place));
    let Place { machine, lab } = &mut place;
    check(clients::admit(lab));
    for (client, act) in ACTS {
        scenes.play(client, || seen(act(lab)));
    }
    scenes.play("a smaller MTU beyond the firewall", || {
        mtu::narrow_beyond_the_firewall(lab)?;
        let outcome = mtu::tcp_works_over_a_smaller_mtu_beyond_the_firewall(lab);
        mtu::widen_beyond_the_firewall(lab)?;
        seen(outcome)
    });
    scenes.play("a smaller MTU beyond the Private Link", || {
        mtu::narrow_beyond_the_private_link(lab)?;
        let outcome = mtu::tcp_works_over_a_smaller_mtu_beyond_the_private_link(lab);
        mtu::widen_beyond_the_private_link(lab)?;
        seen(outcome)
    });
    // The last ones: the link stays narrow.
    scenes.play("the MTU of the link to the firewall is reduced", || {
        seen(mtu::is_noticed(lab, || narrow_to_the_firewall(machine, lab)))
    });
    scenes.play("packets that do not fit are fragmented", || {
        seen(mtu::are_fragmented(lab, || machine.ssh("ip neigh flush all").map(drop)))
    });
    scenes.end();
}

/// What a scene tells of an act: the witness has looked at every packet of it.
fn seen(outcome: Result<()>) -> Result<String> {
    outcome.map(|()| "as it should be; the witness saw no wrong packet".to_owned())
}

fn narrow_to_the_firewall(machine: &Machine, lab: &Lab) -> Result<()> {
    machine.ssh(&format!("ip link set eth1 mtu {}", mtu::NARROW))?;
    mtu::narrow_firewall(lab)
}
