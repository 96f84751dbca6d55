// SPDX-License-Identifier: GPL-2.0

//! The compute channel without faults.

use proptest::prelude::*;

use crate::hw::*;
use crate::rig::*;

const PAGE: usize = PAGE_SIZE as usize;
/// Pages of each array.
const PAGES: usize = 4;
/// Virtual addresses of the arrays. They lie in different tables.
const DST: u64 = 0x1000_0000_0000;
const A: u64 = 0x7fff_ffff_e000;
const B: u64 = 0x20_0000;

pub(super) fn command(op: ComputeOp) -> ComputeCommand {
    ComputeCommand {
        op,
        element: Element::U32,
        irq: false,
        fence: 1,
        root: ROOT,
        dst: 0,
        a: 0,
        b: 0,
        count: 0,
        scalar: 0,
    }
}

/// Pages of an array, each in VRAM or in system memory, in no order.
#[derive(Clone, Copy)]
struct Array {
    va: u64,
    first: usize,
    system: [bool; PAGES],
}

impl Array {
    /// Returns the memory of a page.
    fn frame(&self, page: usize) -> u64 {
        let base = if self.system[page] { DATA } else { VDATA };
        base + ((self.first + PAGES - 1 - page) * PAGE) as u64
    }

    fn map(&self, rig: &mut Rig) {
        for page in 0..PAGES {
            let frame = self.frame(page);
            let pte = match self.system[page] {
                true => Pte::system(frame, true),
                false => Pte::vram(frame, true),
            };
            rig.set_pte(self.va + (page * PAGE) as u64, pte);
        }
    }

    fn put(&self, rig: &Rig, data: &[u8]) {
        for (page, data) in data.chunks(PAGE).enumerate() {
            match self.system[page] {
                true => rig.put(self.frame(page), data),
                false => rig.put_vram(self.frame(page), data),
            }
        }
    }

    fn get(&self, rig: &Rig) -> Vec<u8> {
        let page = |page| match self.system[page] {
            true => rig.get(self.frame(page), PAGE),
            false => rig.get_vram(self.frame(page), PAGE),
        };
        (0..PAGES).flat_map(page).collect()
    }
}

/// Returns the elements of bytes.
fn words(bytes: &[u8]) -> Vec<u32> {
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    bytes.chunks(4).map(word).collect()
}

/// Bytes of elements, with all NaNs made equal: which NaN comes out is not promised.
fn canonical(words: &[u32], element: Element) -> Vec<u32> {
    let one = |word: &u32| match element {
        Element::F32 if f32::from_bits(*word).is_nan() => f32::NAN.to_bits(),
        _ => *word,
    };
    words.iter().map(one).collect()
}

/// The plain reference: what `dst` becomes, and the result.
fn reference(command: &ComputeCommand, a: &[u32], b: &[u32]) -> (Vec<u32>, u64) {
    let s = command.scalar;
    let float = command.element == Element::F32;
    let f = f32::from_bits;
    let each = |op: &dyn Fn(u32, u32) -> u32| a.iter().zip(b).map(|(a, b)| op(*a, *b)).collect();
    match command.op {
        ComputeOp::Fill => (each(&|_, _| s), 0),
        ComputeOp::Add if float => (each(&|a, _| (f(a) + f(s)).to_bits()), 0),
        ComputeOp::Add => (each(&|a, _| a.wrapping_add(s)), 0),
        ComputeOp::Saxpy if float => (each(&|a, b| (f(s) * f(a) + f(b)).to_bits()), 0),
        ComputeOp::Saxpy => (each(&|a, b| s.wrapping_mul(a).wrapping_add(b)), 0),
        ComputeOp::Copy => (a.to_vec(), 0),
        ComputeOp::Sum if float => {
            let mut sum = 0.0_f64;
            for word in a {
                sum += f64::from(f(*word));
            }
            (Vec::new(), sum.to_bits())
        }
        ComputeOp::Sum => (Vec::new(), a.iter().map(|word| u64::from(*word)).sum()),
        ComputeOp::Checksum => {
            let mut hash = 14_695_981_039_346_656_037_u64;
            for byte in a.iter().flat_map(|word| word.to_le_bytes()) {
                hash ^= u64::from(byte);
                hash = hash.wrapping_mul(1_099_511_628_211);
            }
            (Vec::new(), hash)
        }
    }
}

fn any_command() -> impl Strategy<Value = ComputeCommand> {
    let small = prop_oneof![
        any::<u32>(),
        (0_u32..100).prop_map(|n| (n as f32).to_bits())
    ];
    (1_u32..=6, 0_u32..=1, small).prop_map(|(op, element, scalar)| {
        let op = ComputeOp::try_from(op).unwrap();
        let scalar = match op {
            ComputeOp::Fill | ComputeOp::Add | ComputeOp::Saxpy => scalar,
            _ => 0,
        };
        ComputeCommand {
            element: Element::try_from(element).unwrap(),
            scalar,
            ..command(op)
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every operation on both types, with arrays misaligned to each other and scattered over both
    /// kinds of memory, against the reference.
    #[test]
    fn operations(
        mut command in any_command(),
        count in 0_usize..3000,
        skip in prop::array::uniform3(0_usize..1024),
        system in any::<[[bool; PAGES]; 3]>(),
        content in prop::collection::vec(any::<u8>(), PAGES * PAGE),
        in_place in any::<bool>(),
    ) {
        let mut rig = Rig::new();
        let array = |n: usize, va| Array { va, first: n * PAGES, system: system[n] };
        let (dst, mut a, b) = (array(0, DST), array(1, A - DST % 2), array(2, B));
        a.va = 0x7fff_0000_0000;
        let mut before = content.clone();
        before.reverse();
        for (array, data) in [(dst, &before), (a, &content), (b, &before)] {
            array.map(&mut rig);
            array.put(&rig, data);
        }
        let (dst, dst_skip) = if in_place { (a, skip[1]) } else { (dst, skip[0]) };
        let dst_before = words(&dst.get(&rig));
        let from = |data: &[u8], skip: usize| words(data)[skip..skip + count].to_vec();
        let expected = reference(&command, &from(&content, skip[1]), &from(&before, skip[2]));

        let at = |array: Array, skip: usize| array.va + skip as u64 * 4;
        let (uses_dst, uses_a, uses_b) = match command.op {
            ComputeOp::Fill => (true, false, false),
            ComputeOp::Add | ComputeOp::Copy => (true, true, false),
            ComputeOp::Saxpy => (true, true, true),
            ComputeOp::Sum | ComputeOp::Checksum => (false, true, false),
        };
        command.dst = if uses_dst { at(dst, dst_skip) } else { 0 };
        command.a = if uses_a { at(a, skip[1]) } else { 0 };
        command.b = if uses_b { at(b, skip[2]) } else { 0 };
        command.count = count as u64;
        let done = rig.run(CHANNEL_COMPUTE, &command.encode());
        prop_assert_eq!(done.status, Status::Ok);
        let nan = |bits: u64| match command.element {
            Element::F32 if f64::from_bits(bits).is_nan() => f64::NAN.to_bits(),
            _ => bits,
        };
        if command.op == ComputeOp::Sum {
            prop_assert_eq!(nan(done.result), nan(expected.1));
        } else {
            prop_assert_eq!(done.result, expected.1);
        }
        let mut after = dst_before;
        if uses_dst {
            after[dst_skip..dst_skip + count].copy_from_slice(&expected.0);
        }
        let found = canonical(&words(&dst.get(&rig)), command.element);
        prop_assert!(found == canonical(&after, command.element));
        prop_assert_eq!(rig.read32(reg::FAULT_PUT), 0);
    }
}

#[test]
fn checksum_is_fnv_1a() {
    let mut rig = Rig::new();
    rig.set_pte(A, Pte::vram(VDATA, false));
    rig.put_vram(VDATA, b"chongo was here!\n...");
    let mut command = command(ComputeOp::Checksum);
    command.a = A;
    // "chon": no published vector has a length that is a multiple of 4 and fits better.
    command.count = 1;
    let done = rig.run(CHANNEL_COMPUTE, &command.encode());
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul((1 << 40) + 0x1b3);
    assert_eq!(done.result, b"chon".iter().fold(0xcbf29ce484222325, step));
    command.count = 0;
    let done = rig.run(CHANNEL_COMPUTE, &command.encode());
    assert_eq!(done.result, 0xcbf29ce484222325);
}

#[test]
fn data_by_dma_is_counted() {
    let mut rig = Rig::new();
    rig.set_pte(A, Pte::system(DATA, false));
    rig.set_pte(DST, Pte::system(DATA + PAGE_SIZE, true));
    let mut command = command(ComputeOp::Copy);
    (command.a, command.dst, command.count) = (A, DST, 10);
    rig.run(CHANNEL_COMPUTE, &command.encode());
    assert_eq!(rig.read64(reg::STAT_DMA_READ), 40);
    assert_eq!(rig.read64(reg::STAT_DMA_WRITE), 40);
    assert_eq!(rig.read64(reg::STAT_COMMANDS), 1);
}

#[test]
fn unreachable_system_memory_is_a_bus_error() {
    let mut rig = Rig::new();
    rig.set_pte(A, Pte::system(DATA, true));
    rig.set_pte(A + PAGE_SIZE, Pte::system(RAM + RAM_SIZE, true));
    for op in [ComputeOp::Sum, ComputeOp::Fill] {
        let mut command = command(op);
        match op {
            ComputeOp::Sum => command.a = A + 4,
            _ => command.dst = A + 4,
        }
        command.count = 2000;
        let done = rig.run(CHANNEL_COMPUTE, &command.encode());
        assert_eq!(
            (done.status, done.address),
            (Status::BusError, A + PAGE_SIZE)
        );
    }
    assert_eq!(rig.error(CHANNEL_COMPUTE), 0);
}

#[test]
fn nonsense_is_a_bad_command() {
    let mut rig = Rig::new();
    let with = |op, change: fn(&mut ComputeCommand)| {
        let mut command = command(op);
        change(&mut command);
        command.encode()
    };
    let mut unknown = command(ComputeOp::Fill).encode();
    unknown[0] = 7;
    let bad = [
        unknown,
        with(ComputeOp::Fill, |c| c.dst = 2),
        with(ComputeOp::Fill, |c| c.a = 4),
        with(ComputeOp::Sum, |c| c.dst = 4),
        with(ComputeOp::Add, |c| c.b = 4),
        with(ComputeOp::Copy, |c| c.scalar = 1),
        with(ComputeOp::Sum, |c| (c.a, c.count) = (VA_END - 4, 2)),
        with(ComputeOp::Sum, |c| (c.a, c.count) = (4, u64::MAX / 4)),
        with(ComputeOp::Sum, |c| c.count = 1 << 62),
        with(ComputeOp::Sum, |c| c.a = VA_END + 4),
    ];
    for raw in bad {
        let done = rig.run(CHANNEL_COMPUTE, &raw);
        assert_eq!(done.status, Status::BadCommand, "{raw:x?}");
        rig.wait_status(CHANNEL_COMPUTE, channel::STATUS_ERROR);
        assert_eq!(rig.error(CHANNEL_COMPUTE), ChannelError::BadCommand.code());
        rig.write32(channel::base(CHANNEL_COMPUTE) + channel::ERROR, 0);
    }
    // The last elements that can be addressed are fine.
    rig.set_pte(VA_END - PAGE_SIZE, Pte::vram(VDATA, false));
    let last = with(ComputeOp::Sum, |c| (c.a, c.count) = (VA_END - 4, 1));
    assert_eq!(rig.run(CHANNEL_COMPUTE, &last).status, Status::Ok);
}
