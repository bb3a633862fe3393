package config

// The file as it is written: what every key holds, with its position, and nothing understood yet. The yaml
// tags are the only list of keys there is; decode.go refuses every other one, and a test compares it with
// configs/reference.yaml.

// at is a position in the file.
type at struct {
	line int
	key  string // as in Problem.Key
}

// scalar is one value, as written.
type scalar struct {
	at
	text string
	set  bool // the key is there
	bad  bool // and what it holds was refused already
}

// ok says that there is a value to be understood.
func (s scalar) ok() bool { return s.set && !s.bad }

// scalars is one value or a list of them.
type scalars struct {
	at
	items []scalar
	set   bool
	bad   bool
}

// list is a list of mappings.
type list[T any] struct {
	at
	items []T
	set   bool
	bad   bool
}

type rawFile struct {
	at
	Site    scalar `yaml:"site"`
	KeyFile scalar `yaml:"key_file"`

	IdentityFile scalar `yaml:"identity_file"`

	WAN     list[rawWAN]    `yaml:"wan"`
	Voice   list[rawLAN]    `yaml:"voice"`
	Data    list[rawLAN]    `yaml:"data"`
	Tunnels list[rawTunnel] `yaml:"tunnels"`
	Sites   list[rawSite]   `yaml:"sites"`
	Classes list[rawClass]  `yaml:"classes"`
	SIP     rawSIP          `yaml:"sip"`
	Calls   rawCalls        `yaml:"calls"`
	Control rawControl      `yaml:"control"`
	Machine rawMachine      `yaml:"machine"`
}

type rawWAN struct {
	at
	Interface     scalar  `yaml:"interface"`
	VLAN          scalar  `yaml:"vlan"`
	Address       scalars `yaml:"address"`
	Gateway       scalars `yaml:"gateway"`
	Uplink        scalar  `yaml:"uplink"`
	Downlink      scalar  `yaml:"downlink"`
	ShapeDownlink scalar  `yaml:"shape_downlink"`
	Margin        scalar  `yaml:"margin"`
	Link          scalar  `yaml:"link"`
	Overhead      scalar  `yaml:"overhead"`
	MPU           scalar  `yaml:"mpu"`
	Cells         scalar  `yaml:"cells"`
	Serialization scalar  `yaml:"serialization"`
	TakeOver      scalar  `yaml:"take_over"`
	DHCPOptions   scalars `yaml:"dhcp_options"`
	Reach         scalars `yaml:"reach"`

	Targets scalars    `yaml:"targets"`
	Metered rawMetered `yaml:"metered"`
	DHCP6   rawDHCP6   `yaml:"dhcp6"`

	Priority   scalar        `yaml:"priority"`
	Priorities rawPriorities `yaml:"priorities"`
	PPPoE      rawPPPoE      `yaml:"pppoe"`
}

type rawMetered struct {
	at
	Budget  scalar `yaml:"budget"`
	FromDay scalar `yaml:"from_day"`
}

type rawDHCP6 struct {
	at
	Prefix  scalar `yaml:"prefix"`
	Address scalar `yaml:"address"`
}

type rawPriorities struct {
	at
	Media      scalar `yaml:"media"`
	Signalling scalar `yaml:"signalling"`
	Data       scalar `yaml:"data"`
	Background scalar `yaml:"background"`
	Control    scalar `yaml:"control"`
}

type rawPPPoE struct {
	at
	User         scalar `yaml:"user"`
	PasswordFile scalar `yaml:"password_file"`
	Service      scalar `yaml:"service"`
	MTU          scalar `yaml:"mtu"`
	Device       scalar `yaml:"device"`
}

type rawLAN struct {
	at
	Interface scalar  `yaml:"interface"`
	VLAN      scalar  `yaml:"vlan"`
	Address   scalars `yaml:"address"`

	PrefixFrom scalar `yaml:"prefix_from"`
	Subnet     scalar `yaml:"subnet"`
	Suffix     scalar `yaml:"suffix"`

	SRTP scalar `yaml:"srtp"`
}

type rawTunnel struct {
	at
	Name       scalar `yaml:"name"`
	Interface  scalar `yaml:"interface"`
	ListenPort scalar `yaml:"listen_port"`
	Engine     scalar `yaml:"engine"`
	MTU        scalar `yaml:"mtu"`
	PadTo      scalar `yaml:"pad_to"`
}

type rawSite struct {
	at
	Name             scalar  `yaml:"name"`
	PublicKey        scalar  `yaml:"public_key"`
	Endpoint         scalars `yaml:"endpoint"`
	Downlink         scalar  `yaml:"downlink"`
	VoicePort        scalar  `yaml:"voice_port"`
	DataPort         scalar  `yaml:"data_port"`
	VoiceNetworks    scalars `yaml:"voice_networks"`
	DataNetworks     scalars `yaml:"data_networks"`
	Networks         scalars `yaml:"networks"`
	PresharedKeyFile scalar  `yaml:"preshared_key_file"`
	Tunnels          scalar  `yaml:"tunnels"`
	Keepalive        scalar  `yaml:"keepalive"`
	Copies           scalar  `yaml:"copies"`
	SRTP             scalar  `yaml:"srtp"`
	Identity         scalar  `yaml:"identity"`
	Box              scalar  `yaml:"box"`
}

type rawClass struct {
	at
	Name      scalar  `yaml:"name"`
	DSCP      scalars `yaml:"dscp"`
	Outer     scalar  `yaml:"outer"`
	Share     scalar  `yaml:"share"`
	Limit     scalar  `yaml:"limit"`
	Ports     scalars `yaml:"ports"`
	FlowLimit scalar  `yaml:"flow_limit"`
	Admission scalar  `yaml:"admission"`
}

type rawSIP struct {
	at
	Mode      scalar             `yaml:"mode"`
	Unread    scalar             `yaml:"unread"`
	OnFailure scalar             `yaml:"on_failure"`
	Ports     scalars            `yaml:"ports"`
	Servers   list[rawSIPServer] `yaml:"servers"`
	Allow     list[rawSIPAllow]  `yaml:"allow"`
	Emergency scalars            `yaml:"emergency"`
	Prefixes  scalars            `yaml:"prefixes"`
	Limits    rawSIPLimits       `yaml:"limits"`
	Abuse     scalar             `yaml:"abuse"`
	Bounds    rawAbuse           `yaml:"abuse_limits"`
	Toll      rawToll            `yaml:"toll"`
	Country   scalar             `yaml:"country"`
	TLS       list[rawSIPTLS]    `yaml:"tls"`
	Media     rawMedia           `yaml:"media"`
}

type rawMedia struct {
	at
	Ports            scalar    `yaml:"ports"`
	Minimum          scalar    `yaml:"minimum"`
	Methods          scalars   `yaml:"methods"`
	Rotate           rawRotate `yaml:"rotate"`
	ClearSRTCP       scalar    `yaml:"clear_srtcp"`
	RequireEmergency scalar    `yaml:"require_emergency"`
	PacketsPerPort   scalar    `yaml:"packets_per_port"`
}

type rawRotate struct {
	at
	Every   scalar `yaml:"every"`
	Packets scalar `yaml:"packets"`
}

type rawAbuse struct {
	at
	Scan      rawAbuseRule `yaml:"scan"`
	Guess     rawAbuseRule `yaml:"guess"`
	Malformed rawAbuseRule `yaml:"malformed"`
	Flood     rawAbuseRule `yaml:"flood"`
	Throttled rawRate      `yaml:"throttled"`
	Grace     scalar       `yaml:"grace"`
}

type rawAbuseRule struct {
	at
	Warn   scalar `yaml:"warn"`
	Block  scalar `yaml:"block"`
	Within scalar `yaml:"within"`
	Ban    scalar `yaml:"ban"`
	MaxBan scalar `yaml:"max_ban"`
}

type rawRate struct {
	at
	PerSecond scalar `yaml:"per_second"`
	Burst     scalar `yaml:"burst"`
}

type rawToll struct {
	at
	Phones        rawTollLevels `yaml:"phones"`
	PBX           rawTollLevels `yaml:"pbx"`
	International scalars       `yaml:"international"`
	Line          scalar        `yaml:"line"`
	Extensions    scalar        `yaml:"extensions"`
	Premium       scalars       `yaml:"premium"`
	Hours         scalar        `yaml:"hours"`
	Days          scalars       `yaml:"days"`
}

type rawTollLevels struct {
	at
	Warn  rawTollLimits `yaml:"warn"`
	Block rawTollLimits `yaml:"block"`
}

type rawTollLimits struct {
	at
	PerMinute  scalar `yaml:"per_minute"`
	AtOnce     scalar `yaml:"at_once"`
	Abroad     scalar `yaml:"abroad"`
	OutOfHours scalar `yaml:"out_of_hours"`
	Premium    scalar `yaml:"premium"`
}

type rawCalls struct {
	at
	Privacy   scalar `yaml:"privacy"`
	Keep      scalar `yaml:"keep"`
	HEP       scalar `yaml:"hep"`
	HEPID     scalar `yaml:"hep_id"`
	Recording scalar `yaml:"recording"`
}

type rawSIPLimits struct {
	at
	Phone  scalar `yaml:"phone"`
	Server scalar `yaml:"server"`
}

type rawSIPServer struct {
	at
	Name    scalar  `yaml:"name"`
	Address scalars `yaml:"address"`
	Ports   scalars `yaml:"ports"`
}

type rawSIPTLS struct {
	at
	Name        scalar  `yaml:"name"`
	ServerNames scalars `yaml:"server_names"`
	Cert        scalar  `yaml:"cert"`
	Key         scalar  `yaml:"key"`
	CA          scalar  `yaml:"ca"`
	ClientCert  scalar  `yaml:"client_cert"`
	ClientKey   scalar  `yaml:"client_key"`
}

type rawSIPAllow struct {
	at
	Network scalar  `yaml:"network"`
	Ports   scalars `yaml:"ports"`
}

type rawControl struct {
	at
	Group     scalar  `yaml:"group"`
	Services  scalars `yaml:"services"`
	Reflector scalar  `yaml:"reflector"`
	Metrics   scalars `yaml:"metrics"`
}

type rawMachine struct {
	at
	Tune scalar `yaml:"tune"`
}
