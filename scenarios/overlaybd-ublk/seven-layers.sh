#!/bin/sh
# The kernel writes seven layers itself, each above those before it and each stored in another way, by ext4 over ublk into
# an upper that is committed. Then it reads all of them as one image.
set -eux

cd /tmp
serve() {
    "$KILN" layer serve --ublk "$@" >where &
    server=$!
    until [ -s where ]; do
        kill -0 "$server"
        sleep 0.1
    done
    device=$(cat where)
}
end() {
    kill "$server"
    wait "$server"
    test ! -e "$device"
    rm where
}

mkdir -p "$MNT"
head -c 24m /dev/zero >empty.raw
mkfs.ext4 -q empty.raw
"$KILN" layer convert --to overlaybd --compress none --output 1.obd empty.raw
rm empty.raw
layers=1.obd
for number in 2 3 4 5 6 7; do
    case $number in
    2) how="--compress lz4 --block-size 4K" ;;
    3) how="--compress zstd --block-size 4K --tar" ;;
    4) how="--compress lz4 --block-size 16K --tar" ;;
    5) how="--compress zstd --block-size 16K" ;;
    6) how="--compress lz4 --block-size 64K --tar" ;;
    7) how="--compress zstd --block-size 64K --tar" ;;
    esac
    "$KILN" layer create up.data up.index
    # shellcheck disable=SC2086
    serve --upper up.data --upper-index up.index $layers
    mount -t ext4 "$device" "$MNT"
    [ "$number" = 2 ] || (cd "$MNT" && sha256sum --check --quiet /tmp/digests)
    # Something new, something changed in the middle, something gone.
    seq "${number}00000" "${number}30000" >"$MNT/new-$number"
    seq "$number" 3000 >"$MNT/changed"
    [ "$number" = 2 ] || rm "$MNT/gone"
    seq 5000 >"$MNT/gone"
    (cd "$MNT" && sha256sum new-* changed gone) >digests
    umount "$MNT"
    end
    # shellcheck disable=SC2086
    "$KILN" layer commit up.data up.index --output "$number.obd" $how
    rm up.data up.index
    layers="$layers $number.obd"
done

# shellcheck disable=SC2086
"$KILN" layer verify $layers
# shellcheck disable=SC2086
"$KILN" layer convert --to raw --output all.raw $layers
# shellcheck disable=SC2086
serve $layers
cmp "$device" all.raw
e2fsck -f -n "$device"
mount -t ext4 -o ro "$device" "$MNT"
(cd "$MNT" && sha256sum --check --quiet /tmp/digests)
umount "$MNT"
fio --name=layers --filename="$device" --readonly --direct=1 --thread --ioengine=psync --numjobs=4 --group_reporting \
    --rw=randread --bs=4k --size=1m --offset_increment=6m
end
