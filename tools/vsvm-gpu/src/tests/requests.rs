// SPDX-License-Identifier: GPL-2.0

//! The driver's checks of what programs ask for, against the engine: whatever they let pass, the engine
//! can execute, within the addresses that were checked.

use proptest::prelude::*;

use crate::compute::Arrays;
use crate::hw::{ComputeCommand, ComputeOp, Element, VA_END};

#[path = "../../../../drivers/gpu/drm/vsvm/request.rs"]
mod request;

use request::{handles, Request, Work, SYNCOBJS_MAX};

/// Numbers as programs pass them: nothing, addresses, those at the borders, any.
fn number() -> impl Strategy<Value = u64> {
    let near = (-9_i64..9).prop_map(|offset| VA_END.wrapping_add_signed(offset));
    let any = any::<u64>();
    let (page, word) = (0..VA_END >> 12, 0..VA_END >> 2);
    prop_oneof![
        Just(0),
        1_u64..100,
        page.prop_map(|page| page << 12),
        word.prop_map(|word| word << 2),
        near,
        any.prop_map(|number| number >> (number % 64)),
        any
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let op = (1_u32..=6).prop_map(|code| ComputeOp::try_from(code).unwrap());
    let element = (0_u32..=1).prop_map(|code| Element::try_from(code).unwrap());
    let scalar = prop_oneof![Just(0), any::<u32>()];
    let numbers = (number(), number(), number(), number());
    (op, element, numbers, scalar).prop_map(|(op, element, (dst, a, b, count), scalar)| Request {
        op,
        element,
        dst,
        src: [a, b],
        count,
        scalar,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    #[test]
    fn the_engine_can_do_what_the_driver_lets_pass(request in self::request()) {
        let Some(work) = Work::new(&request) else {
            return Ok(());
        };
        let command = ComputeCommand::decode(&work.encode(0x1000, 7)).unwrap();
        prop_assert_eq!((command.root, command.fence, command.irq), (0x1000, 7, true));
        prop_assert_eq!((command.op, command.element), (request.op, request.element));
        let arrays = Arrays::new(&command);
        prop_assert!(arrays.is_some(), "{command:?}");
        let (arrays, [a, b]) = (arrays.unwrap(), work.src);
        for (reached, checked) in [(arrays.dst, work.dst), (arrays.a, a), (arrays.b, b)] {
            let end = reached.map(|start| start..start + arrays.length);
            prop_assert_eq!(end, checked);
        }
    }
}

proptest! {
    #[test]
    fn lists_of_handles(start in number(), count in prop_oneof![0_u32..200, any::<u32>()]) {
        let list = handles(start, count);
        let length = 4 * u64::from(count);
        let fits = count <= SYNCOBJS_MAX && start <= u64::MAX - length;
        let right = fits && (count > 0 || start == 0);
        prop_assert_eq!(list, right.then(|| start..start + length));
    }
}

#[test]
fn nonsense_does_not_pass() {
    let passes = |start, count| {
        let request = Request {
            op: ComputeOp::Sum,
            element: Element::U32,
            dst: 0,
            src: [start, 0],
            count,
            scalar: 0,
        };
        Work::new(&request).is_some_and(|work| work.src[0] == Some(start..start + 4 * count))
    };
    assert!(passes(0x1000, 3) && passes(VA_END - 4, 1));
    assert!(!passes(0x1000, 0) && !passes(0x1002, 1) && !passes(VA_END - 4, 2));
    assert!(!passes(0x1000, u64::MAX / 2) && !passes(u64::MAX - 3, 1));
}
