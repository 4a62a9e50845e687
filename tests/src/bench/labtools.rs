//! The lab's programs for the bench: loaded, attached, and their maps.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    programs::{Xdp, XdpMode},
};
use lab::Namespace;

/// An end of a path: a device in a namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) device: &'a str,
}

pub(crate) fn load() -> Result<Ebpf> {
    load_with(&mut EbpfLoader::new())
}

/// Loads the programs, with settings.
pub(crate) fn load_with(loader: &mut EbpfLoader<'_>) -> Result<Ebpf> {
    let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/labtools"));
    loader.load(object).context("cannot load labtools")
}

/// Has the kernel take a program.
pub(crate) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("labtools has no program {name}"))?;
    let program: &mut Xdp = program.try_into().with_context(|| format!("{name} is not an XDP program"))?;
    program.load().with_context(|| format!("the kernel refuses to load the program {name}"))?;
    Ok(program)
}

/// Puts a program that is loaded on a device, for as long as the value lives.
pub(crate) fn attach(program: &mut Xdp, namespace: &Namespace, device: &str) -> Result<()> {
    namespace
        .inside(|| program.attach(device, XdpMode::Driver))?
        .with_context(|| format!("cannot put a program on {device}"))?;
    Ok(())
}

/// Takes a map of labtools out of the object.
pub(crate) fn map<T>(ebpf: &mut Ebpf, name: &str) -> Result<T>
where
    T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = ebpf.take_map(name).with_context(|| format!("labtools has no map {name}"))?;
    T::try_from(map).with_context(|| format!("{name} is another map"))
}
