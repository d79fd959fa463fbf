#!/bin/sh
# The seven layers merged into one, stored in one way after the other: the kernel reads the same from each.
set -eux

cd /tmp
for how in "lz4 4K" "zstd 16K" "lz4 64K"; do
    compress=${how% *} block=${how#* }
    "$KILN" layer merge --output one.obd --compress "$compress" --block-size "$block" --tar \
        1.obd 2.obd 3.obd 4.obd 5.obd 6.obd 7.obd
    "$KILN" layer serve --ublk one.obd >where &
    server=$!
    until [ -s where ]; do
        kill -0 "$server"
        sleep 0.1
    done
    device=$(cat where)
    cmp "$device" all.raw
    fio --name="$compress-$block" --filename="$device" --readonly --direct=1 --thread --ioengine=psync --numjobs=2 \
        --group_reporting --rw=randread --bsrange=512-64k --blockalign=512 --size=512k --offset_increment=12m
    kill "$server"
    wait "$server"
    test ! -e "$device"
    rm where one.obd
done
