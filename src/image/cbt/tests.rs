use super::*;
use RangeState::{Data, Zero};

const MIB: u64 = 1 << 20;

fn parse(text: &str, size: u64) -> (ListKind, Vec<(Range<u64>, RangeState)>) {
    let list = ChangeList::parse(text.as_bytes(), size).unwrap();
    (list.kind(), list.ranges().to_vec())
}

fn refused(text: &str, size: u64) -> String {
    ChangeList::parse(text.as_bytes(), size).unwrap_err().to_string()
}

#[test]
fn rbd_says_truth_in_text_and_others_without_quotes() {
    let text = r#"[{"offset":0,"length":4096,"exists":"true"},{"offset":8192,"length":4096,"exists":"false"},
        {"offset":12288,"length":4096,"exists":false},{"offset":16384,"length":1,"exists":true}]"#;
    let ranges = vec![(0..4096, Data), (8192..16384, Zero), (16384..16385, Data)];
    assert_eq!(parse(text, 16385), (ListKind::RbdDiff, ranges));
    assert_eq!(parse("[]", 5), (ListKind::RbdDiff, vec![]));
    assert!(
        refused(r#"[{"offset":0,"length":4096,"exists":"maybe"}]"#, MIB).contains("neither true nor false")
    );
}

#[test]
fn rbd_for_people_is_read_by_its_heading() {
    let text = "Offset    Length  Type\n0         4194304 data\n8388608   4194304 zero\n";
    let ranges = vec![(0..4 * MIB, Data), (8 * MIB..12 * MIB, Zero)];
    assert_eq!(parse(text, 16 * MIB), (ListKind::RbdDiffText, ranges));
    assert_eq!(parse("Offset Length Type\n", 1).1, vec![]);
    for wrong in
        ["Offset Length Type\n0 1 hole\n", "Offset Length Type\n0 1\n", "Offset Length Type\n-1 1 data\n"]
    {
        assert!(refused(wrong, MIB).contains("no line of rbd diff"), "{wrong}");
    }
    for unknown in ["", "0 1 data\n", "{}", "null", "\0\u{1}"] {
        assert!(refused(unknown, MIB).contains("none of the lists"), "{unknown}");
    }
}

#[test]
fn a_bitmap_must_speak_of_every_byte() {
    let text = |end: u64| {
        format!(
            r#"[{{"offset":0,"length":65536,"type":1,"description":"dirty"}},
            {{"offset":65536,"length":{},"type":0,"description":"clean"}}]"#,
            end - 65536
        )
    };
    assert_eq!(parse(&text(MIB), MIB), (ListKind::NbdDirty, vec![(0..65536, Data)]));
    assert!(refused(&text(MIB), 2 * MIB).contains("is not spoken of"));
    assert!(refused(&text(MIB), MIB - 1).contains("beyond the end"));
    let gap = r#"[{"offset":4096,"length":4096,"type":1,"description":"dirty"}]"#;
    assert!(refused(gap, 8192).contains("gap"));
}

#[test]
fn a_hole_that_is_not_said_to_be_zeros_is_read() {
    let item = |number: u64, words: &str, at: u64| {
        format!(r#"{{"offset":{at},"length":4096,"type":{number},"description":"{words}"}}"#)
    };
    let words = ["data", "hole", "zero", "hole,zero"];
    let items: Vec<_> = (0..4).map(|n| item(n, words[usize::try_from(n).unwrap()], n * 4096)).collect();
    let text = format!("[{}]", items.join(","));
    let ranges = vec![(0..8192, Data), (8192..16384, Zero)];
    assert_eq!(parse(&text, 16384), (ListKind::NbdAllocation, ranges));
    for wrong in [item(4, "data", 0), item(0, "zero", 0), item(1, "", 0), item(2, "dirty", 0)] {
        assert!(refused(&format!("[{wrong}]"), 4096).contains("not known"), "{wrong}");
    }
}

#[test]
fn a_map_of_qemu_img_says_where_data_lies() {
    let text = r#"[{ "start": 0, "length": 65536, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 327680},
        { "start": 65536, "length": 65536, "depth": 0, "present": false, "zero": true, "data": false, "compressed": false}]"#;
    let list = ChangeList::parse(text.as_bytes(), 131_072).unwrap();
    assert_eq!((list.kind(), list.granularity()), (ListKind::QemuMap, 65536));
    assert_eq!(list.ranges(), [(0..65536, Data), (65536..131_072, Zero)]);
    assert!(!list.kind().is_of_changes());
}

#[test]
fn thin_delta_counts_in_blocks() {
    let text = r#"<superblock uuid="" time="1" transaction="2" data_block_size="128" nr_data_blocks="16384">
  <diff left="0" right="1">
    <same begin="0" length="1"/>
    <different begin="1" length="2"/>
    <right_only begin="3" length="1"/>
    <left_only begin="5" length="1"/>
  </diff>
</superblock>"#;
    let list = ChangeList::parse(text.as_bytes(), MIB).unwrap();
    assert_eq!((list.kind(), list.granularity()), (ListKind::ThinDelta, 65536));
    assert_eq!(list.ranges(), [(65536..4 * 65536, Data), (5 * 65536..6 * 65536, Data)]);
    // The last block of a device may be cut short, by less than a block.
    let list = ChangeList::parse(text.as_bytes(), 6 * 65536 - 512).unwrap();
    assert_eq!(list.ranges().last().unwrap().0.end, 6 * 65536 - 512);
    assert!(refused(text, 5 * 65536).contains("beyond the end"));
    assert!(refused(&text.replace("left_only", "gone"), MIB).contains("<gone> is not known"));
    assert!(refused(&text.replace("128", "0"), MIB).contains("no size"));
    assert!(refused(&text.replace("</diff>", ""), MIB).contains("cannot be read"));
    assert!(refused(text.split("</diff>").next().unwrap(), MIB).contains("cut off"));
}

#[test]
fn ranges_that_make_no_sense_are_refused() {
    let list = |ranges: &[(u64, u64)]| {
        let items: Vec<_> = ranges
            .iter()
            .map(|(offset, length)| format!(r#"{{"offset":{offset},"length":{length},"exists":true}}"#))
            .collect();
        format!("[{}]", items.join(","))
    };
    for (ranges, what) in [
        (vec![(0, MIB + 1)], "beyond the end"),
        (vec![(u64::MAX, 2)], "beyond the end"),
        (vec![(4096, 0)], "is empty"),
        (vec![(4096, 4096), (0, 4096)], "is not behind"),
        (vec![(0, 4096), (4095, 4096)], "is not behind"),
    ] {
        assert!(refused(&list(&ranges), MIB).contains(what), "{ranges:?}");
    }
    let mixed =
        r#"[{"offset":0,"length":1,"exists":true},{"offset":1,"length":1,"type":1,"description":"dirty"}]"#;
    assert!(refused(mixed, MIB).contains("not what the others have"));
    for wrong in [
        "[",
        "[{}]",
        "[1]",
        "[]x",
        r#"[{"offset":0,"exists":true}]"#,
        r#"[{"offset":-1,"length":1,"exists":true}]"#,
    ] {
        assert!(refused(wrong, MIB).contains("cannot be read"), "{wrong}");
    }
}

#[test]
fn the_granularity_is_what_divides_all_places() {
    let granularity = |text: &str, size| ChangeList::parse(text.as_bytes(), size).unwrap().granularity();
    assert_eq!(granularity(r#"[{"offset":131072,"length":65536,"exists":true}]"#, MIB), 65536);
    assert_eq!(granularity(r#"[{"offset":131072,"length":5,"exists":true}]"#, MIB), 1);
    // The end of a disk is no place of a list's own.
    assert_eq!(granularity(r#"[{"offset":131072,"length":5,"exists":true}]"#, 131_077), 131_072);
    assert_eq!(granularity("[]", MIB + 1), 2 * MIB);
}

/// Lists as the programs wrote them: `rbd` 16.2.15 (`tests/ceph.sh`), `nbdinfo` 1.14.2 beside `qemu-nbd` 7.2.22, `qemu-img`
/// 7.2.22, `thin_delta` 0.9.0.
#[test]
fn what_the_programs_write_is_read() {
    const K: u64 = 1 << 10;
    let read = |bytes: &[u8], size: u64| {
        let list = ChangeList::parse(bytes, size).unwrap();
        (list.kind(), list.granularity(), list.ranges().to_vec())
    };
    let (kind, granularity, ranges) =
        read(include_bytes!("../../../tests/data/lists/rbd-diff.json"), 256 * MIB);
    assert_eq!((kind, granularity), (ListKind::RbdDiff, 4096));
    let expected =
        [(3 * MIB..3 * MIB + 4096, Data), (104 * MIB..112 * MIB, Zero), (200 * MIB..201 * MIB, Data)];
    assert_eq!(ranges, expected);
    let (kind, _, ranges) = read(include_bytes!("../../../tests/data/lists/rbd-diff.txt"), 256 * MIB);
    assert_eq!((kind, ranges), (ListKind::RbdDiffText, vec![(248 * MIB..250 * MIB + 64 * K, Data)]));
    let (kind, granularity, ranges) =
        read(include_bytes!("../../../tests/data/lists/nbdinfo-dirty.json"), 16 * MIB);
    assert_eq!((kind, granularity), (ListKind::NbdDirty, 64 * K));
    let expected =
        [(MIB..MIB + 64 * K, Data), (5 * MIB..5 * MIB + 64 * K, Data), (9 * MIB..9 * MIB + 128 * K, Data)];
    assert_eq!(ranges, expected);
    let (kind, _, ranges) =
        read(include_bytes!("../../../tests/data/lists/nbdinfo-allocation.json"), 16 * MIB);
    assert_eq!(kind, ListKind::NbdAllocation);
    let data: Vec<_> =
        ranges.iter().filter(|(_, state)| *state == Data).map(|(range, _)| range.start).collect();
    assert_eq!(data, [0, MIB, 5_308_416, 9 * MIB, 16_580_608]);
    let (kind, _, ranges) = read(include_bytes!("../../../tests/data/lists/qemu-img-map.json"), 16 * MIB);
    assert_eq!(kind, ListKind::QemuMap);
    let data: Vec<_> =
        ranges.into_iter().filter(|(_, state)| *state == Data).map(|(range, _)| range).collect();
    assert_eq!(data, [0..64 * K, 5 * MIB..5 * MIB + 128 * K, 16_580_608..16_580_608 + 64 * K]);
    let (kind, granularity, ranges) = read(include_bytes!("../../../tests/data/lists/thin_delta.xml"), MIB);
    assert_eq!((kind, granularity), (ListKind::ThinDelta, 64 * K));
    assert_eq!(ranges, [(2 * 64 * K..5 * 64 * K, Data), (14 * 64 * K..16 * 64 * K, Data)]);
}
