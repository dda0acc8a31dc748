// Everything that it declares is in device.hpp.
#pragma once
