#!/bin/sh
# Scrubbing the corrupted disk must find every block that was overwritten, and repair every one.
set -eu
expected=$(cat /tmp/raid/blocks.txt)
mount -t btrfs "${DISK}1" "$MNT"
# Corrected errors are no failure to scrub; its exit status speaks of the others.
btrfs scrub start -B -R "${DISK}3" | tee /tmp/raid/scrub.txt

counter() { awk -v name="$1:" '$1 == name { print $2 }' /tmp/raid/scrub.txt; }
must() {
    found=$(counter "$1")
    test "$found" = "$2" || { echo "$1 is ${found:-missing}, must be $2"; exit 1; }
}
case $(uname -r) in
[1-5].* | 6.[0-3].* | 6.[0-3]-*)
    # Before Linux 6.4 a run of bad blocks counts once; each run that was read must then have been one.
    must data_bytes_scrubbed $((expected * 4096))
    expected=$(counter data_extents_scrubbed)
    ;;
esac
must csum_errors "$expected"
must corrected_errors "$expected"
must uncorrectable_errors 0
must unverified_errors 0
must verify_errors 0
must read_errors 0
must super_errors 0

# The disk's own record says the same, and the other disks have none.
btrfs device stats "$MNT" | tee /tmp/raid/scrub-stats.txt
awk -v expected="$expected" '
    /corruption_errs/ && $2 > 0 { disks++; if ($2 != expected) wrong = 1 }
    !/corruption_errs/ && $2 != 0 { wrong = 1 }
    END { exit wrong || disks != 1 }' /tmp/raid/scrub-stats.txt
echo "all $(cat /tmp/raid/blocks.txt) blocks were found and repaired"
