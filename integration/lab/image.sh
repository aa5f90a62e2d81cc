#!/usr/bin/env bash
# Builds the guest of the lab: a kernel to boot directly and an initramfs with the tools the checks need.
#
#   image.sh OUTDIR      leaves OUTDIR/vmlinux and OUTDIR/initrd
#
# The kernel is Debian's own (linux-image-cloud-amd64), unpacked and not installed. Both files are left uncompressed:
# unpacking them inside an emulated guest would take longer than all the rest of the boot.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "$0")" && pwd)
out=$1
mkdir -p "$out"
work=$out/build
exec 9>"$out/lock"
flock 9

package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
if [ -z "$package" ]; then
    echo "image: apt knows no linux-image-cloud-amd64; run 'apt-get update' as root" >&2
    exit 1
fi
version=$(apt-cache policy "$package" | awk '/Candidate:/ { print $2 }')
# What is built depends on the kernel, on the tools of this machine and on the recipe.
key=$( { echo "$package $version"; cat "$here/image.sh" "$here/init"; fio --version; mkfs.xfs -V; mkfs.ext4 -V; } 2>&1 |
    sha256sum | cut -c1-16)
if [ "$(cat "$out/key" 2>/dev/null)" = "$key" ]; then
    exit 0
fi
rm -rf "$work" "$out/key"
mkdir -p "$work"

# The kernel package, kept from run to run.
deb=$(find "$out" -maxdepth 1 -name "${package}_*.deb" | head -1)
if [ -z "$deb" ] || [ "$(dpkg-deb -f "$deb" Version)" != "$version" ]; then
    rm -f "$out"/linux-image-*.deb
    (cd "$out" && apt-get download -q -o APT::Sandbox::User=root "$package")
    deb=$(find "$out" -maxdepth 1 -name "${package}_*.deb" | head -1)
fi
dpkg-deb -x "$deb" "$work/kernel"
bzimage=$(find "$work/kernel/boot" -name 'vmlinuz-*')

# A number of the bzImage's setup header (little-endian, `2` bytes at offset `1`).
field() { od -An -t "u$2" -j "$1" -N "$2" "$bzimage" | tr -d ' '; }
start=$(( ($(field $((0x1f1)) 1) + 1) * 512 + $(field $((0x248)) 4) ))
length=$(field $((0x24c)) 4)
# The last four bytes of the payload are its unpacked size, no LZ4 data; lz4 says so and is right to stop there.
dd if="$bzimage" of="$work/payload" bs=1M iflag=skip_bytes,count_bytes skip="$start" count="$((length - 4))" status=none
lz4 -q -d -f "$work/payload" "$work/vmlinux"

root=$work/root
mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,mnt,modules,lib,lib64,usr/lib}
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $("$root/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -sf busybox "$root/bin/$applet"
done

# Modules in the order in which they must be loaded.
modules=(virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk libcrc32c xfs)
for module in "${modules[@]}"; do
    file=$(find "$work/kernel/lib/modules" -name "$module.ko")
    if [ -n "$file" ]; then
        cp "$file" "$root/modules/"
        echo "$module.ko" >>"$root/modules/order"
    fi
done

# fio wants ceph, gluster and RDMA libraries (80 MB) that no check uses. In their place: empty libraries of the same names which
# define the symbols that fio names, with their versions.
stubbed='^lib(gfapi|nbd|ibverbs|rdmacm|rados|rbd|pmem|pmemblk|numa)\.so'
stubs() {
    local fio=$1 symbols library versions version
    symbols=$work/symbols
    readelf --dyn-syms -W "$fio" | awk '$7 == "UND" && $8 != "" { print $8, $9 }' >"$symbols"
    # version name -> library, from the version needs
    readelf -V -W "$fio" | awk '/File:/ { for (i = 1; i < NF; i++) if ($i == "File:") file = $(i + 1) }
        /Name:/ { for (i = 1; i < NF; i++) if ($i == "Name:") print $(i + 1), file }' | sort -u >"$work/versions"
    for library in $(readelf -d "$fio" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' | grep -E "$stubbed"); do
        : >"$work/stub.c"
        : >"$work/stub.map"
        versions=$(awk -v l="$library" '$2 == l { print $1 }' "$work/versions")
        for version in $versions; do
            echo "$version { global:" >>"$work/stub.map"
            awk -v v="@$version" 'index($1, v) && substr($1, length($1) - length(v) + 1) == v { sub(/@.*/, "", $1); print $1 }' \
                "$symbols" | sort -u | while read -r symbol; do
                echo "void $symbol(void) {}" >>"$work/stub.c"
                echo "$symbol;" >>"$work/stub.map"
            done
            echo '};' >>"$work/stub.map"
        done
        if [ -z "$versions" ]; then
            # An unversioned library: its symbols share its name as a prefix (librados: rados_).
            grep -oE "^${library#lib}[a-z0-9_]*|^$(echo "$library" | sed 's/^lib//; s/\.so.*//')_[a-z0-9_]*" "$symbols" | sort -u |
                while read -r symbol; do echo "void $symbol(void) {}"; done >"$work/stub.c"
        fi
        cc -shared -nostdlib -fPIC -w -Wl,-soname,"$library" ${versions:+-Wl,--version-script="$work/stub.map"} \
            -o "$root/usr/lib/$library" "$work/stub.c"
    done
}

# Copies a dynamically linked program and its libraries.
program() {
    local path loader
    path=$(readlink -f "$(command -v "$1")")
    cp "$path" "$root/sbin/$1"
    if [ "$1" = fio ]; then
        stubs "$path"
        export LD_LIBRARY_PATH=$root/usr/lib
    fi
    ldd "$path" | awk '$2 == "=>" && $3 ~ "^/" { print $1, $3 }' | while read -r name library; do
        [ -e "$root/usr/lib/$name" ] || cp -L "$library" "$root/usr/lib/$name"
    done
    loader=$(readelf -l "$path" | sed -n 's/.*interpreter: \(.*\)\]/\1/p')
    cp -L "$loader" "$root$loader"
    unset LD_LIBRARY_PATH
}
for tool in fio mkfs.ext4 e2fsck mkfs.xfs xfs_repair blkdiscard fstrim fallocate; do
    program "$tool"
done

cp "$here/init" "$root/init"
chmod 755 "$root/init"
(cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc --quiet --owner=0:0) >"$work/initrd"

mv "$work/vmlinux" "$out/vmlinux"
mv "$work/initrd" "$out/initrd"
echo "$package $version" >"$out/kernel"
rm -rf "$work"
echo "$key" >"$out/key"
