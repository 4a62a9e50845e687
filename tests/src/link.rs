//! Wires between namespaces: veth pairs that behave like a cable between two machines.

use std::{
    ffi::CString,
    fs,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use aya::{
    EbpfLoader,
    programs::{ProgramFd, Xdp},
};

use aya_obj::programs::XdpAttachType;

use crate::{interrupt, namespace::Namespace, state::State};

/// Lays a wire from a device in one namespace to a device in another, and takes both up.
///
/// Offloads are off at both ends: a veth would otherwise hand over unfinished checksums and
/// super-frames, which no wire carries, and which a program that rewrites packets cannot repair.
pub fn wire(
    (left, left_device): (&Namespace, &str),
    (right, right_device): (&Namespace, &str),
) -> Result<()> {
    wire_with_queues((left, left_device), (right, right_device), 1)
}

/// Lays a wire whose devices have this many queues. The CPU that sends by XDP chooses which one.
pub fn wire_with_queues(
    (left, left_device): (&Namespace, &str),
    (right, right_device): (&Namespace, &str),
    queues: u32,
) -> Result<()> {
    let queues = format!("numtxqueues {queues} numrxqueues {queues}");
    left.ip(&format!(
        "link add {left_device} {queues} type veth peer name {right_device} {queues} netns {}",
        right.name()
    ))?;
    for (namespace, device) in [(left, left_device), (right, right_device)] {
        offloads(namespace, device, false)?;
        namespace.ip(&format!("link set {device} up"))?;
    }
    Ok(())
}

/// Makes the end of a wire to a virtual machine, and takes it up. The machine's program opens the
/// other end by this name.
pub(crate) fn tap(namespace: &Namespace, device: &str) -> Result<()> {
    // One queue for each pair of the machine's; with a header that says which checksums are
    // unfinished, as between a cloud's host and its machines.
    namespace
        .ip(&format!("tuntap add {device} mode tap multi_queue vnet_hdr\nlink set {device} up"))
        .map(drop)
}

/// Switches what a NIC would do for its host: transmit checksums and segmentation.
pub fn offloads(namespace: &Namespace, device: &str, on: bool) -> Result<()> {
    let state = if on { "on" } else { "off" };
    namespace.run("ethtool", &["-K", device, "tx", state, "tso", state, "gso", state]).map(drop)
}

/// A program that passes every packet, for the far ends of the router's wires.
///
/// Without a program there, a veth drops what the router sends by XDP_TX or a redirect.
#[derive(Debug)]
pub struct XdpPass {
    pin: PathBuf,
}

impl XdpPass {
    /// Loads the program.
    pub fn load(state: &State) -> Result<Self> {
        let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/labtools"));
        let mut ebpf = EbpfLoader::new().load(object).context("cannot load the lab's XDP programs")?;
        let program = ebpf.program_mut("xdp_pass").context("the lab's object has no program xdp_pass")?;
        let program: &mut Xdp = program.try_into().context("xdp_pass is not an XDP program")?;
        program.load().context("the kernel refuses to load xdp_pass")?;
        let pin = state.path("bpf/xdp_pass");
        let _running = interrupt::gate();
        program.pin(&pin).with_context(|| format!("cannot pin xdp_pass to {}", pin.display()))?;
        Ok(Self { pin })
    }

    /// Puts the program on a device. It stays there for the life of the device, even after this
    /// process: `ip` attaches it through netlink, without a link that a process would have to hold.
    pub fn attach(&self, namespace: &Namespace, device: &str) -> Result<()> {
        namespace.ip(&format!("link set dev {device} xdpdrv pinned {}", self.pin.display())).map(drop)
    }

    /// Returns the program, to be put into a program array.
    pub fn program(&self) -> Result<ProgramFd> {
        let program = Xdp::from_pin(&self.pin, XdpAttachType::Interface).context("cannot open xdp_pass")?;
        Ok(program.fd().context("xdp_pass is not loaded")?.try_clone()?)
    }
}

impl Drop for XdpPass {
    fn drop(&mut self) {
        // The pin was only needed to attach; the lab's bpffs goes away with the lab in any case.
        let _gone = fs::remove_file(&self.pin);
    }
}

/// Takes the program of a pinned link off its interface and leaves the pin, as `bpftool link
/// detach` does it.
pub fn detach(pin: &Path) -> Result<()> {
    // enum bpf_cmd, and the parts of union bpf_attr for these two (include/uapi/linux/bpf.h).
    const BPF_OBJ_GET: libc::c_long = 7;
    const BPF_LINK_DETACH: libc::c_long = 34;
    #[repr(C)]
    struct ObjGet {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(pin.as_os_str().as_bytes()).context("a path with a zero byte")?;
    let get = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    let failed = || std::io::Error::last_os_error();
    // SAFETY: the attributes are those of the command, and the path lives through the call.
    let link = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const get, size_of::<ObjGet>()) };
    let link = RawFd::try_from(link).ok().filter(|link| *link >= 0).ok_or_else(failed);
    let link = link.with_context(|| format!("cannot open {}", pin.display()))?;
    // SAFETY: the kernel has just made this descriptor for us.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let descriptor: u32 = link.as_raw_fd().cast_unsigned();
    // SAFETY: the attributes of this command are one descriptor, which lives through the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const descriptor, size_of::<u32>()) };
    ensure!(result == 0, "cannot detach {}: {}", pin.display(), failed());
    Ok(())
}
