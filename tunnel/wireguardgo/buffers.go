package wireguardgo

import (
	"fmt"
	"reflect"
	"unsafe"

	"golang.zx2c4.com/wireguard/device"
)

// maxBuffers is how many message buffers of 64 KiB a device may use at once, whatever arrives: 64 MiB. A
// caller that needs one more waits until one comes back. It is above what can lie unused: 256 are the
// readers' own, 256 (maxAllWaiters) may wait for a session, and three bursts of handshake messages may wait
// for the workers, which need buffers themselves.
const maxBuffers = 1024

// boundBuffers bounds the device's pool of message buffers, which is unbounded on Linux. The bound is the
// device package's own, for phones; on Linux its setting is a constant 0, and no call changes it. Nothing may
// have been taken from the pool before: what was taken uncounted must not be counted when it comes back.
func boundBuffers(d *device.Device, limit uint32) error {
	pool := reflect.ValueOf(d).Elem().FieldByName("pool")
	if pool.Kind() != reflect.Struct {
		return fmt.Errorf("bound the engine's memory: this wireguard-go has no buffer pools")
	}
	buffers := pool.FieldByName("messageBuffers")
	if !buffers.IsValid() || buffers.Type() != reflect.TypeFor[*device.WaitPool]() {
		return fmt.Errorf("bound the engine's memory: this wireguard-go has another buffer pool")
	}
	bound := buffers.Elem().FieldByName("max")
	if bound.Kind() != reflect.Uint32 {
		return fmt.Errorf("bound the engine's memory: this wireguard-go's buffer pool has no bound")
	}
	*(*uint32)(unsafe.Pointer(bound.UnsafeAddr())) = limit
	return nil
}
