//! Arbitrary stored bytes decode to the recorded length or to an error, within the bound; what was encoded
//! comes back.
#![no_main]

use std::cell::RefCell;

use ekko::codec::{Codec, Compression, CompressionSetting, Decoder, Encoder, Encryption};
use libfuzzer_sys::fuzz_target;

/// No input asks for more plain bytes than this.
const BOUND: u32 = 1 << 20;

thread_local! {
    static DECODER: RefCell<Decoder> = RefCell::new(Decoder::new().unwrap());
}

fuzz_target!(|input: (u8, u8, u32, &[u8])| {
    let (compression, encryption, length, bytes) = input;
    let length = length % BOUND;
    DECODER.with_borrow_mut(|decoder| {
        if let (Ok(compression), Ok(encryption)) =
            (Compression::from_id(compression % 5), Encryption::from_id(encryption % 3))
        {
            let mut plain = Vec::new();
            let decoded = decoder.decode(Codec { compression, encryption }, bytes, length, &mut plain);
            assert!(plain.len() <= length as usize);
            assert!(decoded.is_err() || plain.len() == length as usize);
        }
        let setting = ["none", "zlib:1", "lzma:0", "zstd:1"][usize::from(compression % 4)];
        let setting: CompressionSetting = setting.parse().unwrap();
        let (mut stored, mut plain) = (Vec::new(), Vec::new());
        let codec = Encoder::new(setting).unwrap().encode(bytes, &mut stored);
        assert!(stored.len() <= bytes.len());
        decoder.decode(codec, &stored, bytes.len() as u32, &mut plain).unwrap();
        assert_eq!(plain, bytes);
    });
});
