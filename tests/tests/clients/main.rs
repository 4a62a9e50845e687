//! Real clients through the router: what people run, against servers that people run. Needs root.
//!
//! Their acts are in `lab::clients`. Every test runs twice, each time in a separate lab: with
//! pls-router, and with the kernel's own NAT (nftables), which shows whether the test itself is
//! right and what the answer is.

// Its `#[test]` takes the place of the compiler's.
#[macro_use]
extern crate harness;

mod stage;

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::main(harness::no_root("network namespaces need root"))
}

/// Makes two tests of each row, one a router. With `ignored "..."` the one with pls-router is
/// ignored, and so counted as skipped, for that reason. `-- --include-ignored` runs it
/// nevertheless. With `after ...` the lab is changed by that function before the router starts.
macro_rules! matrix {
    ($($nics:ident $subject:ident :: $test:ident $(after $change:ident)? $(ignored $why:literal)?;)*) => {
        mod pls_router {
            $(
                #[test]
                $(#[ignore = $why])?
                fn $test() {
                    crate::stage::play(
                        lab::Nics::$nics,
                        lab::Router::find,
                        &[$(lab::clients::$subject::$change)?],
                        lab::clients::$subject::$test,
                    );
                }
            )*
        }
        mod nftables {
            $(
                #[test]
                fn $test() {
                    crate::stage::play(
                        lab::Nics::$nics,
                        || Ok(lab::Router::Nftables),
                        &[$(lab::clients::$subject::$change)?],
                        lab::clients::$subject::$test,
                    );
                }
            )*
        }
    };
}

// Ignored tests wait for a feature of the data plane, and pass with nftables. Remove `ignored` with
// the feature's arrival.
matrix! {
    One web::http_1_1_downloads_and_uploads_on_one_connection;
    One web::http_2_multiplexes_on_one_connection;
    One git::repositories_are_pushed_cloned_and_fetched;
    One database::rows_come_back_as_they_were_put_in;
    One shell::commands_run_and_files_are_copied;
    One dns::names_resolve_over_udp_and_tcp;
    One dns::large_answers_come_in_fragments;
    One bulk::all_of_128_parallel_streams_transfer;
    One stun::mappings_are_endpoint_independent_and_filters_are_not;
    One stun::padded_requests_are_answered;
    One stun::two_clients_with_the_same_port_are_kept_apart;
    One fragments::datagrams_of_64_kb_go_both_ways;
    One fragments::large_pings_are_answered;
    One trace::traceroute_shows_every_hop;
    Two trace::traceroute_shows_every_hop_with_two_nics;
    One trace::traceroute_to_the_endpoint_shows_only_the_endpoint;
    One trace::mtr_reports_every_hop;
    One trace::tracepath_shows_every_hop;
    Two mtu::the_router_reports_the_mtu_of_its_link after narrow_to_the_firewall;
    Two mtu::a_reduced_mtu_is_noticed;
    Two mtu::tracepath_finds_the_smaller_mtu after narrow_to_the_firewall;
    Two mtu::packets_without_df_are_fragmented after narrow_to_the_firewall;
    Two mtu::tcp_works_over_a_smaller_mtu_to_the_firewall after narrow_to_the_firewall;
    Two mtu::tcp_works_over_a_smaller_mtu_to_the_private_link after narrow_to_the_private_link;
    Two mtu::tcp_works_over_a_smaller_mtu_beyond_the_firewall after narrow_beyond_the_firewall;
    Two mtu::tcp_works_over_a_smaller_mtu_beyond_the_private_link after narrow_beyond_the_private_link;
}
