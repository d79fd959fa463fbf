#!/bin/sh
# Overwrites, underneath the unmounted filesystem, every data block of the third disk that has a checksum, and
# nothing else. How many that are is what scrub must find.
set -eu
victim=3
cd /tmp/raid

# Where data chunks lie on the disks, and which logical addresses hold data, from the filesystem's own trees.
btrfs inspect-internal dump-tree -t chunk "${DISK}1" >chunks.txt
btrfs inspect-internal dump-tree -t csum "${DISK}1" >csums.txt

# RAID5 puts 64K strips on the disks in turn; the turn begins one disk later in each row of strips.
awk -v victim="$victim" '
    FILENAME == "chunks.txt" && $1 == "item" && $5 == "CHUNK_ITEM" { logical = $6 + 0; data = 0 }
    FILENAME == "chunks.txt" && $1 == "length" && / type DATA\|RAID5/ {
        data = 1; chunk = ++chunks; start[chunk] = logical; size[chunk] = $2 + 0; strip[chunk] = $6 + 0
    }
    FILENAME == "chunks.txt" && data && $1 == "num_stripes" { width[chunk] = $2 + 0 }
    FILENAME == "chunks.txt" && data && $1 == "stripe" {
        disk[chunk, $2 + 0] = $4 + 0; offset[chunk, $2 + 0] = $6 + 0
    }
    FILENAME == "csums.txt" && $1 == "item" && $5 == "EXTENT_CSUM" {
        from = $6 + 0; to = from + $NF / 4 * 4096
        while (from < to) {
            for (chunk = 1; chunk <= chunks; chunk++)
                if (from >= start[chunk] && from < start[chunk] + size[chunk]) break
            if (chunk > chunks) { print "no RAID5 chunk holds " from >"/dev/stderr"; exit 1 }
            within = from - start[chunk]
            number = int(within / strip[chunk])
            row = int(number / (width[chunk] - 1))
            column = (number % (width[chunk] - 1) + row) % width[chunk]
            skip = within % strip[chunk]
            length_ = strip[chunk] - skip
            if (length_ > to - from) length_ = to - from
            if (disk[chunk, column] == victim)
                printf "%.0f %.0f %.0f\n", from, offset[chunk, column] + row * strip[chunk] + skip, length_
            from += length_
        }
    }' chunks.txt csums.txt >places.txt
test -s places.txt

# A second opinion on the first and the last place, from the tool that reads mappings as the kernel does.
(head -n 1 places.txt; tail -n 1 places.txt) | while read -r logical physical _; do
    btrfs-map-logical -l "$logical" -b 4096 "${DISK}1" >mapped.txt
    grep "physical $physical device" mapped.txt || { cat mapped.txt; echo "not at $physical"; exit 1; }
done

blocks=0
while read -r _ physical length; do
    count=$((length / 4096))
    dd if=/dev/urandom of="$DISK$victim" bs=4096 count=$count seek=$((physical / 4096)) conv=notrunc status=none
    blocks=$((blocks + count))
done <places.txt
sync
echo "$blocks" >blocks.txt
echo "overwrote $blocks data blocks of disk $victim in $(wc -l <places.txt) places"
test "$blocks" -gt 200
