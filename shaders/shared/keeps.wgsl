// Dropout of slots that no row weighs.

#ifdef DROPOUT
#import dropout
#endif

// Whether a slot's weight is kept. What is kept is added up first and multiplied once.
fn keeps(packed_row: u32, query: u32, slot: u32) -> bool {
#ifdef DROPOUT
    return is_kept(packed_row, query, slot);
#else
    return true;
#endif
}
